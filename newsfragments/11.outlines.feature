New networks see faint differences on a logarithmic scale: the outline of a crystal in liquor of equal level is a hundred times fainter than the border to air. Earlier weights are read as before.
