``xia2.anacor``: statistics and merged data end where CC½ of the best strategy falls below ``cc_half=0.3``, as in xia2, unless ``d_min`` is given. Before, they had all that was integrated, also where there is no signal.

``virtual_thaumatin.py --setting images --xia2`` goes from images and scan to merged data by one command.
