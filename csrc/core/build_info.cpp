// One small object holds what the build passes in, so that a new version recompiles this file only.
#include "core/introspection.h"

const char* crossmodal_build_info() { return CROSSMODAL_BUILD_JSON; }
