Where a corner of a crystal is missing from its labels, the hollow is no longer taken for a face, and what is left of faces of a form that is there is known at angles up to 5 degrees: a quarter of the crystal that was missing (a Dice coefficient of 0.85) is completed to 0.99.

``xia2.anacor mesh=crystal.stl`` takes the crystal's surface in place of tomography; further meshes by ``absorption.options="mesh.liquor=drop.stl"``.
