/* What C programs rely on, checked. Without an argument: everything that must work. With one: a
   misuse that must end the process. Prints "ok" and nothing else. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Not NDEBUG's to switch off, and no stdio, which would allocate. */
#define CHECK(condition) \
    do { if (!(condition)) failed(#condition, __LINE__); } while (0)

static void failed(const char *what, int line) {
    dprintf(2, "line %d: %s\n", line, what);
    _exit(1);
}

/* Hides from the compiler what is known of a pointer or a size. */
static void *opaque(void *p) { __asm__ volatile("" : "+r"(p) : : "memory"); return p; }
static size_t any(size_t n) { __asm__ volatile("" : "+r"(n)); return n; }

static char *early;
__attribute__((constructor(101))) static void constructor(void) {
    early = malloc(1000);
    memset(early, 7, 1000);
}

static void results(void) {
    enum { N = 100 };
    void *empty[N];
    errno = 4711;
    for (int i = 0; i < N; i++) {
        empty[i] = malloc(any(0));
        CHECK(empty[i]);
        for (int j = 0; j < i; j++) CHECK(empty[i] != empty[j]);
    }
    for (int i = 0; i < N; i++) free(empty[i]);
    free(NULL);
    for (size_t size = 1; size < 100000000; size += size / 3 + 1) {
        char *p = malloc(size);
        CHECK(p && (uintptr_t)p % 16 == 0 && malloc_usable_size(p) >= size);
        memset(p, 1, size);
        free(p);
        p = calloc(1, size);
        CHECK(p && p[0] == 0 && p[size / 2] == 0 && p[size - 1] == 0);
        for (size_t i = 0; i < size && size < 1000000; i++) CHECK(p[i] == 0);
        free(p);
    }
    CHECK(errno == 4711);
    CHECK(malloc_usable_size(NULL) == 0);
}

static void refusals(void) {
#define NO_MEMORY(call) do { errno = 0; CHECK((call) == NULL); CHECK(errno == ENOMEM); } while (0)
    size_t most = PTRDIFF_MAX;
    char *kept = malloc(10);
    strcpy(kept, "kept");
    NO_MEMORY(malloc(any(most)));
    NO_MEMORY(malloc(any(most + 1)));
    NO_MEMORY(malloc(any(SIZE_MAX)));
    NO_MEMORY(malloc(any((size_t)1 << 45)));
    NO_MEMORY(calloc(any(SIZE_MAX / 2), 3));
    NO_MEMORY(calloc(any(most), 2));
    NO_MEMORY(realloc(kept, any(most)));
    NO_MEMORY(reallocarray(kept, any(SIZE_MAX / 4), 5));
    NO_MEMORY(reallocarray(kept, any((size_t)1 << 45), 1));
    NO_MEMORY(memalign(64, any(most)));
    NO_MEMORY(aligned_alloc(64, any(most)));
    NO_MEMORY(valloc(any(most)));
    NO_MEMORY(pvalloc(any(SIZE_MAX)));
    CHECK(strcmp(kept, "kept") == 0);
    void *p = kept;
    errno = 4711;
    CHECK(posix_memalign(&p, any(3), 8) == EINVAL);
    CHECK(posix_memalign(&p, any(4), 8) == EINVAL);
    CHECK(posix_memalign(&p, any(0), 8) == EINVAL);
    CHECK(posix_memalign(&p, 64, any(most)) == ENOMEM);
    CHECK(p == kept && errno == 4711);
    CHECK(aligned_alloc(any(48), 10) == NULL && errno == EINVAL);
    free(kept);
}

static void alignments(void) {
    for (size_t align = 8; align <= 64 << 20; align *= 2) {
        for (size_t size = 1; size < 300000; size = size * 5 + 1) {
            void *p = NULL;
            CHECK(posix_memalign(&p, align, size) == 0 && (uintptr_t)p % align == 0);
            memset(p, 1, size);
            CHECK(malloc_usable_size(p) >= size);
            p = realloc(p, size * 2);
            CHECK(p && ((char *)p)[size - 1] == 1);
            free(p);
            p = memalign(align, size);
            CHECK(p && (uintptr_t)p % align == 0);
            free(p);
            p = aligned_alloc(align, size);
            CHECK(p && (uintptr_t)p % align == 0);
            free(p);
        }
    }
    size_t page = sysconf(_SC_PAGESIZE);
    void *p = valloc(any(100));
    CHECK((uintptr_t)p % page == 0);
    free(p);
    p = pvalloc(any(100));
    CHECK((uintptr_t)p % page == 0 && malloc_usable_size(p) >= page);
    free(p);
    p = memalign(any(48), 10);
    CHECK((uintptr_t)p % 64 == 0);
    free(p);
}

static void reallocations(void) {
    unsigned char *p = realloc(NULL, any(1));
    p[0] = 0;
    size_t size = 1;
    while (size < 20000000) {
        size_t more = size + size / 2 + 1;
        p = realloc(p, more);
        CHECK(p);
        for (size_t i = 0; i < size; i += 1 + size / 1000) CHECK(p[i] == (unsigned char)(i * 7));
        for (size_t i = 0; i < more; i++) p[i] = (unsigned char)(i * 7);
        size = more;
    }
    while (size > 1) {
        size /= 3;
        p = realloc(p, size);
        CHECK(p);
        for (size_t i = 0; i < size; i += 1 + size / 1000) CHECK(p[i] == (unsigned char)(i * 7));
    }
    errno = 4711;
    CHECK(realloc(opaque(p), any(0)) == NULL && errno == 4711);
    p = reallocarray(NULL, any(10), 100);
    CHECK(p && malloc_usable_size(p) >= 1000);
    free(p);
}

/* Threads. */

static pthread_key_t late_key;

/* Runs after the heap's own, and again and again: a destructor that sets its value anew. */
static void late(void *value) {
    int *count = value;
    free(malloc(100 + *count));
    char *next = calloc(1, 3000);
    CHECK(next[2999] == 0);
    free(next);
    if (++*count < 3) pthread_setspecific(late_key, count);
    else free(count);
}

static void *short_life(void *arg) {
    char *mine = malloc(200);
    memset(mine, 3, 200);
    pthread_setspecific(late_key, calloc(1, sizeof(int)));
    free(arg);
    return mine;
}

static void thread_turnover(void) {
    for (int i = 0; i < 3000; i++) {
        pthread_t thread;
        void *result;
        CHECK(pthread_create(&thread, NULL, short_life, malloc(500)) == 0);
        CHECK(pthread_join(thread, &result) == 0);
        CHECK(((char *)result)[199] == 3);
        free(result);
    }
}

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void *at_once(void *arg) {
    char *p = malloc(64);
    memset(p, 5, 64);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    free(arg);
    char *q = malloc(30000);
    memset(q, 6, 30000);
    CHECK(p[63] == 5);
    free(p);
    free(q);
    return NULL;
}

/* More threads than there are slots, if the system gives so many. */
static void many_threads(void) {
    enum { N = 4500 };
    static pthread_t threads[N];
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 64 << 10);
    pthread_mutex_lock(&gate);
    int n = 0;
    while (n < N && pthread_create(&threads[n], &attr, at_once, malloc(40)) == 0) n++;
    CHECK(n > 100);
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < n; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

/* Forks, while other threads are anywhere in the allocator. */

enum { BOXES = 256 };
static char *_Atomic boxes[BOXES];
static _Atomic int stop;

static unsigned step(unsigned *state) {
    *state = *state * 1103515245u + 12345u;
    return *state >> 8;
}

static void *exchange(void *arg) {
    unsigned state = (unsigned)(uintptr_t)arg;
    while (!stop) {
        size_t size = step(&state) % (step(&state) % 32 ? 2000 : 200000) + 8;
        char *new = malloc(size);
        CHECK(new);
        memcpy(new, &size, sizeof size);
        memset(new + 8, (char)size, size - 8);
        char *old = __atomic_exchange_n((char **)&boxes[step(&state) % BOXES], new, __ATOMIC_ACQ_REL);
        if (old) {
            memcpy(&size, old, sizeof size);
            for (size_t i = 8; i < size; i++) CHECK(old[i] == (char)size);
            free(old);
        }
    }
    return NULL;
}

__attribute__((noreturn)) static void child(int depth) {
    for (int i = 0; i < BOXES; i++) {
        char *old = boxes[i];
        boxes[i] = NULL;
        if (!old) continue;
        size_t size;
        memcpy(&size, old, sizeof size);
        for (size_t k = 8; k < size; k++) CHECK(old[k] == (char)size);
        if (i % 2) {
            old = realloc(old, size * 2);
            CHECK(old[size - 1] == (char)size || size == 8);
        }
        free(old);
    }
    pthread_t threads[3];
    stop = 0;
    for (uintptr_t i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, exchange, (void *)(i + 77)) == 0);
    for (int i = 0; i < 200; i++) free(malloc(i * 100));
    if (depth) {
        pid_t pid = fork();
        if (pid == 0) child(depth - 1);
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    stop = 1;
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    _exit(0);
}

static void forks(void) {
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, exchange, (void *)(i + 1)) == 0);
    for (int i = 0; i < 60; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) child(i % 3 == 0);
        int status;
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(status == 0);
        pid = vfork();
        if (pid == 0) { execl("/bin/true", "true", (char *)NULL); _exit(127); }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        char *argv[] = {"true", NULL};
        CHECK(posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) == 0);
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    stop = 1;
    for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

static char *held;

/* What it has is never free, so that its span is none that a child could use for something else. */
static void *sleeper(void *arg) {
    held = malloc(100);
    pthread_mutex_unlock(arg);
    pause();
    return NULL;
}

/* A child needs more than the heap has, block by block, when a thread of its parent's is one of the dead. */
static void a_child_that_grows(void) {
    pthread_mutex_t begun = PTHREAD_MUTEX_INITIALIZER;
    pthread_t thread;
    pthread_mutex_lock(&begun);
    CHECK(pthread_create(&thread, NULL, sleeper, &begun) == 0);
    pthread_mutex_lock(&begun);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(20);
        /* The heap has 64 MiB at first. */
        for (int i = 0; i < 3000000; i++) CHECK(malloc(any(32)));
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, NULL) == 0);
    free(held);
}

/* A child that uses its parent's memory. */
static void *spawner(void *arg) {
    (void)arg;
    char *volatile p = NULL;
    pid_t pid = vfork();
    if (pid == 0) { p = malloc(100); p[0] = 9; opaque(p); _exit(0); }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0 && p[0] == 9);
    free(p);
    return NULL;
}

static void no_descriptors(void) {
    pid_t pid = fork();
    if (pid == 0) {
        for (int fd = 0; fd < 1024; fd++) close(fd);
        size_t total = 0;
        while (total < 200000000) {
            char *p = malloc(1000000);
            if (!p) _exit(1);
            memset(p, 1, 1000000);
            total += 1000000;
        }
        _exit(open("/", 0) == 0 ? 0 : 2);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void at_exit(void) {
    free(malloc(100));
    free(early);
}

static int misuse(const char *what) {
    char *p = malloc(100), *big = malloc(1000000);
    if (!strcmp(what, "twice")) { free(p); free(opaque(p)); }
    if (!strcmp(what, "big-twice")) { free(big); free(opaque(big)); }
    if (!strcmp(what, "interior")) free(opaque(p + 16));
    if (!strcmp(what, "big-interior")) free(opaque(big + 16384));
    if (!strcmp(what, "misaligned")) free(opaque(p + 1));
    if (!strcmp(what, "stack")) { char local[100]; free(opaque(local)); }
    if (!strcmp(what, "realloc")) { free(p); p = realloc(opaque(p), 300); }
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1) return misuse(argv[1]);
    CHECK(early && early[999] == 7);
    atexit(at_exit);
    a_child_that_grows();
    results();
    refusals();
    alignments();
    reallocations();
    /* Keys beyond the first 32 make the C library allocate for each thread. */
    for (int i = 0; i < 40; i++) {
        pthread_key_t key;
        CHECK(pthread_key_create(&key, NULL) == 0);
    }
    CHECK(pthread_key_create(&late_key, late) == 0);
    thread_turnover();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, spawner, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    forks();
    no_descriptors();
    many_threads();
    CHECK(write(1, "ok\n", 3) == 3);
    return 0;
}
