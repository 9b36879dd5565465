// Nothing: what it declares is known without it.
