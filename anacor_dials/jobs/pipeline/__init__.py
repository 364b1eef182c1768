"""From integrated sweeps and tomography to merged intensities: the steps behind ``xia2.anacor``.

::

    each crystal    scan -> segment -> labels; labels + all its sweeps -> absorption -> factors
    each group      symmetry -> scale by every strategy -> compare -> best -> absences -> merge,
                    export

What is scaled together is a group: the sweeps of one crystal, as in xia2, or of all crystals.
Sweeps of several wavelengths are treated as xia2 treats them, too: symmetry and scaling take them
together, so that all are on one scale and in one setting; then they are divided by wavelength, and
statistics, merging and export are of one wavelength each. The factors are of each wavelength's own
mu.

Every step is a run of one command, with a folder, a log and a record of its own
(:mod:`anacor_dials.jobs.pipeline.steps`); only the statistics are computed here.
"""

from __future__ import annotations
