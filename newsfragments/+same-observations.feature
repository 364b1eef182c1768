``dials.anacor_compare`` and its report end with statistics of the same observations for all strategies, which outlier rejection cannot flatter.
