Labels are also read from NIfTI, NRRD, MRC and Amira/Avizo files, with the size of their voxels.
