Crystals by their faces, without a tomogram: ``dials.anacor_absorption models.expt observations.refl faces=faces.txt`` reads ``h k l distance_um``, ``FACE`` lines (SHELX-76, PLATON; mm) and CIF, traces exact paths to the planes, and writes a CIF with what checkCIF asks for (faces, sizes, T, mu, density, F000); ``xia2.anacor`` takes ``faces=`` in place of tomography.

``dials.anacor_simulate sample.shape=thaumatin`` or ``lysozyme`` makes crystals whose faces are planes of the lattice that the diffraction data come from.
