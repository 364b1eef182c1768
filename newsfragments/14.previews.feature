``dials.anacor_edit`` shows large volumes at once, at reduced size, while the whole is read; ``dials.anacor_segment`` keeps that preview in ``tomo.h5``.
