"""Six small programs with recurrent layers, each one command: `python -m rnnkit.examples.<name>`.

deep_classifier   three stacked tanh layers that classify sequences; a bidirectional LSTM that classifies digits
keras_notebook    reproduces a tutorial on Keras' recurrent layers: parameter counts, shapes, published numbers
next_word         every argument of RNN and LSTM; then both predict the last word of six sentences
char_rnn          a character model trained on Python's documentation; then it generates text
units_primer      the meaning of "units", "state" and "output", in shapes
recurrent_policy  acts by single steps, learns from whole sequences in which new episodes begin, and remembers a cue

All accept --backend, --seed and --out. They need `pip install 'rnnkit[examples]'`. In Python, the function `main(argv)`
of each module runs the program and returns its results.

Five more are for PyTorch. They need `pip install 'rnnkit[torch-examples]'`. The first four run with torch.nn's layers
and with rnnkit's side by side, and compare losses and times:

torch_characters     next-character LSTM over packed lines of text
torch_recurrent_ppo  RecurrentPPO of sb3-contrib on CartPole, its layers swapped by `rnnkit.torch.replace`
torch_tagger         bidirectional LSTM that restores capital letters
torch_compiled       a compiled model with a GRU inside
torch_distributed    several processes under torchrun, which survive a killed worker
"""
