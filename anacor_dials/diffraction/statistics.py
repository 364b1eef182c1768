"""Names of the merging statistics by which scaling strategies are compared. Needs no DIALS."""

from __future__ import annotations

# parameter -> (row of DIALS' Table 1, better where higher: +1, lower: -1)
STATISTICS = {
    "r_meas": ("Rmeas(I)", -1),
    "r_pim": ("Rpim(I)", -1),
    "cc_half": ("CC half", 1),
    "i_over_sigma": ("I/sigma", 1),
    "anomalous_correlation": ("Anomalous correlation", 1),
}
