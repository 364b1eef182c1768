Crystals by their faces, without a tomogram: ``dials.anacor_absorption models.expt observations.refl faces=faces.txt`` reads ``h k l distance_um``, ``FACE`` lines (SHELX-76, PLATON; mm) and CIF, traces exact paths to the planes, and writes a CIF with what checkCIF asks for (faces, sizes, T, mu, density, F000); ``xia2.anacor`` takes ``faces=`` in place of tomography.

``dials.anacor_simulate sample.shape=thaumatin`` or ``lysozyme`` makes crystals whose faces are planes of the lattice that the diffraction data come from.

The faces of the crystal are found in the labels: ``dials.anacor_absorption`` fits planes to its surface, gives them Miller indices with the orientation matrix, and lists them with distances, areas and angles in log, report (with a picture), JSON and ``output.faces=``. ``alignment.refine=faces`` takes offset and sense of rotation from them, without any absorption, with a standard error and the rivals that symmetry leaves; without it a warning says where the faces contradict the alignment.

``alignment.refine=offset`` compares the labels with their mirror image: where that fits the intensities better, nothing is moved, and a warning says that the labels are mirrored.

``dials.anacor_absorption models.expt observations.refl mesh=crystal.stl mesh.liquor= mesh.NAME=`` takes the sample from meshes (STL, PLY, OBJ) in the frame of a tomogram or of the goniometer: concave, hollow and several crystals, liquor, capillary and mount, with path lengths that are exact for the triangles.

``labels.crystal=faces`` or ``auto`` takes the polyhedron of the crystal's faces in place of its voxels, where these fit it, in finer voxels: ragged and incomplete labels are completed, and log, report and JSON say by how much.

``output.faces=`` writes the faces as CIF where the name ends in ``.cif``, which ``faces=`` reads again.

``faces=`` and ``output.faces=`` know files ``.cap``: lines of ``h k l distance`` in mm.
