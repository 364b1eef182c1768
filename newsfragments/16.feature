``xia2.anacor`` works on several crystals side by side, within ``nproc`` or by the workers of a Dask cluster (``dask.scheduler=``, ``dask.cluster=slurm``); a crystal that fails leaves the others. Its report begins with a table of all crystals, those that need a look first, with thumbnails, and ``anacor.csv`` holds the same numbers. ``xia2.anacor watch=FOLDER`` works on crystals as their xia2 directories and scans come. ``anacor.json`` has a JSON Schema.

``dials.anacor_simulate diffraction.images=True`` makes rotation images of virtual samples (NXmx) in which spots and background are absorbed; ``diffraction.detector=flat_1m`` is a small flat detector.

``dials.anacor_compare`` and ``xia2.anacor`` say where what the factors leave fits a wrong polarisation, or an error of the detector, better than absorption; what decides is how well each foretells reflections that were left out of its fit.

``dials.anacor_train`` runs in several processes, on several GPUs or machines, by torch's own launcher (``torchrun``).
