``dials.anacor_train training.part=coarse`` trains the coarse pass alone, on whole samples, and ``training.part=slices`` the rest of the network behind a coarse pass that is kept.
