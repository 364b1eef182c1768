A warning says where part of the border between crystal and liquor does not show in the tomogram although the rest does: the crystal may be incomplete there.
