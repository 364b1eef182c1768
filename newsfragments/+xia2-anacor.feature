``xia2.anacor``: from a finished xia2 directory (or integrated files, or images) and one tomography scan per crystal to merged intensities, by one command; what is done is not done again.
