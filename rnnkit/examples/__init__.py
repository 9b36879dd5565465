"""Five small recurrent programs, each one command: `python -m rnnkit.examples.<name>`.

deep_classifier   three stacked tanh layers that classify sequences; a bidirectional LSTM that reads digits
keras_notebook    a tutorial on Keras' recurrent layers, repeated here: parameter counts, shapes, published figures
next_word         every argument of RNN and LSTM, and the last word of six sentences predicted
char_rnn          a character model trained on Python's own documentation, and text sampled from it
units_primer      what "units", "state" and "output" mean, in shapes

All take --backend, --seed and --out. They need `pip install 'rnnkit[examples]'`. In Python, each module's
`main(argv)` runs it and returns what it found.
"""
