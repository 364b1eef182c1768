New weights of ``anacornet-tiny``: crystals that stick out of their drop with equal absorption, and noisy ones without fringes, are found where they were lost.
