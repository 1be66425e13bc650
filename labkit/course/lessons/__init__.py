"""The checks of each lesson: ``lesson_NN.py`` with a function ``check_N_M(ctx, thing)`` an exercise."""
