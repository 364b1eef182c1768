``dials.anacor_edit`` says how uncertain the absorption factors still are because the labels are doubtful, and writes it to ``tomo.h5``.
