``dials.anacor_simulate``: virtual tomography scans of virtual samples by wave optics, with true labels, and virtual diffraction data with true intensities and transmissions.
