// Empty: emulator.h, which is always included, has these declarations.
