/* Runs a job of the CPU path on copies of the memory that it reads and writes, at the same addresses as in the host.

       run IMAGE

   IMAGE is a file of 64-bit integers: the number of ranges, the number of spans, the address of the argument block and
   the number of threads; address, size and is_written of each range; address and size of each span of whole pages to
   map. The bytes of all ranges follow. After the job, the bytes of written ranges are stored back to IMAGE. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void job(int64_t block, int64_t index);

/* Numba allocates small arrays of kernels by this function. They are never freed. */
typedef struct {
    size_t references;
    void *end, *end_of;
    char *data;
    size_t size;
    void *outside;
} Memory;

Memory *NRT_MemInfo_alloc_aligned(size_t size, uint32_t line) {
    Memory *found = calloc(1, sizeof *found + size + line);
    found->references = 1, found->size = size;
    found->data = (char *)(((uintptr_t)(found + 1) + line - 1) / line * line);
    return found;
}

static int64_t block;

static void fail(const char *what) {
    perror(what);
    exit(2);
}

static void *run_worker(void *index) {
    job(block, (int64_t)index);
    return NULL;
}

static void transfer(int file, int out, char *at, int64_t size, int64_t offset) {
    while (size > 0) {
        ssize_t done = out ? pwrite(file, at, size, offset) : pread(file, at, size, offset);
        if (done <= 0) fail("image");
        at += done, size -= done, offset += done;
    }
}

int main(int count, char **arguments) {
    int file = count == 2 ? open(arguments[1], O_RDWR) : -1;
    int64_t head[4];
    if (file < 0 || read(file, head, sizeof head) != sizeof head) fail("image");
    int64_t ranges = head[0], spans = head[1], size = 8 * (3 * ranges + 2 * spans), *words = malloc(size);
    if (read(file, words, size) != size) fail("image");
    for (int64_t *span = words + 3 * ranges; span < words + size / 8; span += 2) {
        void *found = mmap((void *)span[0], span[1], PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (found != (void *)span[0]) fail("mmap");
    }
    for (int out = 0; out < 2; ++out) {
        int64_t offset = sizeof head + size;
        for (int64_t k = 0; k < ranges; ++k) {
            int64_t *range = words + 3 * k;
            if (!out || range[2]) transfer(file, out, (char *)range[0], range[1], offset);
            offset += range[1];
        }
        if (out) break;
        block = head[2];
        pthread_t threads[64];
        for (int64_t k = 1; k < head[3]; ++k)
            if (pthread_create(&threads[k], NULL, run_worker, (void *)k)) fail("thread");
        job(block, 0);
        for (int64_t k = 1; k < head[3]; ++k) pthread_join(threads[k], NULL);
    }
    return 0;
}
