``dials.anacor_compare``: the same data scaled by several strategies (none, spherical harmonics, analytical, both), merging statistics side by side.
