A conda recipe, a Dockerfile, an Apptainer definition and a module file, in ``packaging/``. plotly is a requirement, so that reports never need a network.
