/* Check, when wheels/libjpeg.py has built libjpeg-turbo, that pipelines/turbo/entropy.c fits its private struct. Nothing is
 * generated from this file: the compiler stops at an assertion that is false. */

#define JPEG_INTERNALS
#include "jinclude.h"
#include "jpeglib.h" /* with jpegint.h, where the struct stands */

#include <stddef.h>

#define jpeg_entropy_decoder entropy_s_own /* the struct that entropy.c declares, beside libjpeg's */
#include "entropy.c"
#undef jpeg_entropy_decoder

#define SAME_PLACE(member) \
    _Static_assert(offsetof(struct jpeg_entropy_decoder, member) == offsetof(struct entropy_s_own, member), \
                   "entropy.c: " #member " is elsewhere in this libjpeg")
#define SAME_TYPE(member) \
    _Static_assert(__builtin_types_compatible_p(__typeof__(((struct jpeg_entropy_decoder *)0)->member), \
                                                __typeof__(((struct entropy_s_own *)0)->member)), \
                   "entropy.c: " #member " has another type in this libjpeg")

SAME_PLACE(start_pass);
SAME_PLACE(decode_mcu);
SAME_TYPE(start_pass);
SAME_TYPE(decode_mcu);
