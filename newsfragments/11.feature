`dials.anacor_train stream.use=True` trains on a stream of fresh virtual tomograms of all kinds of samples (crystals that stick out of the drop, skins of liquor, dry, twins, cracked, mounts and meshes, no fringes to strong ones, rings, streaks, samples larger than the field of view), made in the volume without projections. AnACorNet sees the whole sample in a coarse pass before it labels slices, and the shipped weights were trained so.

`dials.anacor_segment` says what its doubt is worth: the uncertainty of the absorption factors from the labels, by label volumes that are as plausible as the one taken. It is stored in `tomo.h5`, is part of `analytical_correction_error`, and warns above 1.5 %. Further warnings: an unsure border of the crystal, several bodies of crystal, no air in the field of view, much noise. Two crystals in a loop are both labelled (`segmentation.one_crystal=True` for the largest alone).

Two sets of weights ship, and that is taken whose labels explain the tomogram best.

`segmentation.axes=auto` is the default: slices across all three axes are labelled and averaged where the box around the sample has up to 24 million voxels.

Surfaces of materials are moved from where the network puts them to the steepest rise in the tomogram, less what refraction moves it outwards at long wavelengths (a micrometre at 10 mm and 3.5 keV), where energy and distance of the scan are known (``segmentation.edges``). The tomo.h5 holds both now.
