"""The parts of the CuPy backend: sources and their modules, cuBLAS, work space and graphs, and one file a schedule."""
