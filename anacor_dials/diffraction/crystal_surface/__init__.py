"""The faces of a crystal, found in the surface that its labels have in the tomogram."""
