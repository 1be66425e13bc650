"""The checks of lesson 02: a learner's cache is judged piece by piece, in counts."""
