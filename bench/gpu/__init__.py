"""What one run on a CUDA card answers: is it right, how fast is it beside torch and cuDNN, and what are the ceilings.

    python -m bench.gpu --out FOLDER        (make gpu OUT=FOLDER)

A part a question, each a process of its own with a time of its own (`plan`), writing what it finds line by line
(`lines`), so that one that fails or hangs costs the run no more than its own time. Nothing is installed, and no setting
of the card is changed.
"""
