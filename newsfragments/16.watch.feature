``xia2.anacor watch=`` tells a xia2 that still runs from one that failed, whose reason it gives, and from one that was killed; it knows the end of ``xia2.integrate``, too.
