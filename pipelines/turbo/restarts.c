/* Restart markers for a JPEG: it is encoded again from the same coefficients, so its pixels stay bit-identical. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

struct errors {
    struct jpeg_error_mgr manager; /* first, so that a pointer to it is one to this struct */
    jmp_buf failed;                /* the place that fail jumps to */
};

/* Abandon the JPEG. libjpeg calls this as error_exit. */
static void fail(j_common_ptr info) { longjmp(((struct errors *)info->err)->failed, 1); }

/* Treat warnings, which libjpeg gives for damaged data, as errors. libjpeg calls this as emit_message. */
static void fail_on_warning(j_common_ptr info, int level) {
    if (level < 0) fail(info);
}

/* Fail on a coefficient for which the tables of T.81's annex K have no code (sections F.1.2.1 and F.1.2.2: AC values have
 * at most 10 bits, DC differences 11). A damaged file may have some, and libjpeg would silently write other values. */
static void check_range(j_decompress_ptr info, jvirt_barray_ptr *coefficients) {
    for (int i = 0; i < info->num_components; i++) {
        const jpeg_component_info *component = &info->comp_info[i];
        for (JDIMENSION y = 0; y < component->height_in_blocks; y++) {
            JBLOCKROW row = *info->mem->access_virt_barray((j_common_ptr)info, coefficients[i], y, 1, FALSE);
            for (JDIMENSION x = 0; x < component->width_in_blocks; x++) {
                int beyond = row[x][0] < -1024 || row[x][0] > 1023;
                for (int k = 1; k < DCTSIZE2; k++) beyond |= row[x][k] < -1023 || row[x][k] > 1023;
                if (beyond) fail((j_common_ptr)info);
            }
        }
    }
}

/* Write the JPEG to out with a restart marker after each interval of MCUs (B.2.4.4), with the Huffman tables of T.81's
 * annex K and without metadata. Return the number of bytes written; 0 if the JPEG is damaged, or room is too small. */
int64_t with_restarts(const uint8_t *jpeg, int64_t size, int32_t interval, uint8_t *out, int64_t room) {
    struct errors errors;
    struct jpeg_decompress_struct from = {.err = jpeg_std_error(&errors.manager)};
    struct jpeg_compress_struct to = {.err = &errors.manager};
    unsigned char *written = out;
    unsigned long bytes = room;
    volatile int64_t length = 0;
    errors.manager.error_exit = fail;
    errors.manager.emit_message = fail_on_warning;
    if (!setjmp(errors.failed)) {
        jpeg_create_decompress(&from);
        jpeg_create_compress(&to);
        jpeg_mem_src(&from, jpeg, size);
        jpeg_read_header(&from, TRUE);
        jvirt_barray_ptr *coefficients = jpeg_read_coefficients(&from);
        check_range(&from, coefficients);
        jpeg_copy_critical_parameters(&from, &to);
        to.restart_interval = interval;
        jpeg_mem_dest(&to, &written, &bytes);
        jpeg_write_coefficients(&to, coefficients);
        jpeg_finish_compress(&to);
        if (written == out) length = bytes;
        else free(written); /* the result is larger than room: jpeg_mem_dest allocated other memory for it */
    }
    jpeg_destroy_compress(&to);
    jpeg_destroy_decompress(&from);
    return length;
}
