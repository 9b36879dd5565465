// Included before every source: the names that NVRTC provides without an #include.
#pragma once
#include <float.h>
#include <limits.h>
#include <time.h>

#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

#include "emulator/abi.h"
#include "emulator/builtins.h"
#include "emulator/export.h"
#include "emulator/math.h"
#include "emulator/ptx.h"
#include "emulator/types.h"
#include "emulator/warp.h"
