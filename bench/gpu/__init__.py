"""One run on a CUDA card: are the results right, how fast is it beside torch and cuDNN, and what are the ceilings.

    python -m bench.gpu --out FOLDER        (make gpu OUT=FOLDER)

Each question is a part (`plan`), with its own processes and its own time limit. A part writes each finding as one line
(`items_file`), so a part that fails or hangs costs the run no more than its own time. Nothing is installed, and no
setting of the card is changed.
"""
