The list of doubtful places in ``dials.anacor_edit`` begins with those where the border between crystal and liquor does not show; ``tomo.h5`` holds them.
