AnACorNet looks twice more before it labels: slices see what slices through the middle of the coarse blocks showed, in place of what the coarse pass found.
