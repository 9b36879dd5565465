/* Runs a job of the CPU path on an image of the memory it reads and writes, each range at the address it came from.

       run IMAGE

   IMAGE: the words ranges, spans, block, threads; for each range its address, size and whether it is written; for each
   span of whole pages its address and size; then the ranges' bytes. Those that are written are written back. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void job(int64_t block, int64_t index);

/* Numba's memory for a kernel's few words of its own; never given back. */
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

static void *member(void *index) {
    job(block, (int64_t)index);
    return NULL;
}

static void move(int file, int out, char *at, int64_t size, int64_t place) {
    while (size > 0) {
        ssize_t done = out ? pwrite(file, at, size, place) : pread(file, at, size, place);
        if (done <= 0) fail("image");
        at += done, size -= done, place += done;
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
        int64_t place = sizeof head + size;
        for (int64_t k = 0; k < ranges; ++k) {
            int64_t *range = words + 3 * k;
            if (!out || range[2]) move(file, out, (char *)range[0], range[1], place);
            place += range[1];
        }
        if (out) break;
        block = head[2];
        pthread_t threads[64];
        for (int64_t k = 1; k < head[3]; ++k)
            if (pthread_create(&threads[k], NULL, member, (void *)k)) fail("thread");
        job(block, 0);
        for (int64_t k = 1; k < head[3]; ++k) pthread_join(threads[k], NULL);
    }
    return 0;
}
