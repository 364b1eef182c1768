AnACorNet looks once more before it labels: slices see the mean of what the coarse pass and slices through the middle of its blocks found.
