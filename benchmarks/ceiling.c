/* What the server alone can do: a driver that costs next to nothing, and sends the same commands.
 *
 *   ceiling PORT add N PAYLOAD_BYTES     N times XADD with the four fields of a job, pipelined
 *   ceiling PORT one N PAYLOAD_BYTES     the same, each awaited
 *   ceiling PORT drain N                 XREADGROUP COUNT 500, XACK and XDEL of the batch, until N are through
 *
 * The address is 127.0.0.1. Prints one line of JSON. Two batches are always on their way, so that the server never waits
 * for us. Of replies only as much is understood as is needed: where one ends, and the entry ids in it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 500
#define STREAM "ceiling:default"
#define GROUP "ceiling"

static int fd;
static char *in;                                  /* what came and is not understood yet: in[at .. end) */
static size_t at, end, room = 1 << 20;
static char *out;
static size_t filled, space = 1 << 20;
static char ids[BATCH][32];
static int found;

static void die(const char *what) {
    fprintf(stderr, "ceiling: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(const char *bytes, size_t n) {
    while (filled + n > space)
        if (!(out = realloc(out, space *= 2))) die("no memory");
    memcpy(out + filled, bytes, n);
    filled += n;
}

static void text(const char *format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    put(line, (size_t)n);
}

static void word(const char *bytes, size_t n) {
    text("$%zu\r\n", n);
    put(bytes, n);
    put("\r\n", 2);
}

static void words(const char *each, ...) {       /* ends with NULL */
    va_list args;
    va_start(args, each);
    for (; each; each = va_arg(args, const char *)) word(each, strlen(each));
    va_end(args);
}

static void flush(void) {
    for (size_t sent = 0; sent < filled;) {
        ssize_t n = write(fd, out + sent, filled - sent);
        if (n <= 0) die("write");
        sent += (size_t)n;
    }
    filled = 0;
}

static void more(void) {
    if (at == end) at = end = 0;
    if (end == room) {
        if (at > 0) {
            memmove(in, in + at, end - at);
            end -= at;
            at = 0;
        } else if (!(in = realloc(in, room *= 2))) die("no memory");
    }
    ssize_t n = read(fd, in + end, room - end);
    if (n <= 0) die("the server hung up");
    end += (size_t)n;
}

static long number(char kind) {                   /* the rest of a header line, once it is there */
    char *line;
    while (!(line = end > at ? memchr(in + at, '\n', end - at) : NULL)) more();
    long value = 0;
    if (in[at] == '-') {
        errno = 0;
        *line = 0;
        die(in + at);
    }
    if (kind && in[at] != kind) die("an unexpected reply");
    value = strtol(in + at + 1, NULL, 10);
    at = (size_t)(line - in) + 1;
    return value;
}

static void bulk(char *copy, size_t limit) {      /* a string, kept in `copy` if that is given */
    long n = number('$');
    while (end - at < (size_t)n + 2) more();
    if (copy) {
        if ((size_t)n >= limit) die("an unexpected reply");
        memcpy(copy, in + at, (size_t)n);
        copy[n] = 0;
    }
    at += (size_t)n + 2;
}

static int entries(void) {                        /* the reply of XREADGROUP: ids of its entries, 0 if there are none */
    if (number('*') <= 0) return 0;
    number('*');
    bulk(NULL, 0);
    found = (int)number('*');
    if (found > BATCH) die("an unexpected reply");
    for (int i = 0; i < found; i++) {
        number('*');
        bulk(ids[i], sizeof ids[i]);
        for (long n = number('*'); n > 0; n--) bulk(NULL, 0);
    }
    return found;
}

static void add(long n, const char *payload) {
    char stamp[32], id[64];
    snprintf(stamp, sizeof stamp, "%lld", 1790000000000LL + n);
    snprintf(id, sizeof id, "019a2f60-5d2c-7b1e-9c3a-%012ld", n);
    text("*11\r\n");
    words("XADD", STREAM, "*", "taskName", "bench", "payload", payload, "enqueuedAt", stamp, "jobId", id, NULL);
}

static void group(void) {
    text("*6\r\n");
    words("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM", NULL);
    flush();
    while (!memchr(in + at, '\n', end - at)) more();
    if (in[at] == '-' && strncmp(in + at, "-BUSYGROUP", 10)) number('+');
    at = end = 0;
}

static void ask(void) {
    text("*9\r\n");
    words("XREADGROUP", "GROUP", GROUP, "one", "COUNT", "500", "STREAMS", STREAM, ">", NULL);
}

static void settle(void) {
    text("*%d\r\n", 3 + found);
    words("XACK", STREAM, GROUP, NULL);
    for (int i = 0; i < found; i++) word(ids[i], strlen(ids[i]));
    text("*%d\r\n", 2 + found);
    words("XDEL", STREAM, NULL);
    for (int i = 0; i < found; i++) word(ids[i], strlen(ids[i]));
}

static long adding(long n, const char *payload) {
    long sent = 0, done = 0;
    while (done < n) {
        for (; sent < n && sent - done <= BATCH; flush())
            for (int i = 0; i < BATCH && sent < n; i++) add(sent++, payload);
        for (int i = 0; i < BATCH && done < n; i++, done++) bulk(NULL, 0);
    }
    return done;
}

static long awaited(long n, const char *payload) {
    for (long i = 0; i < n; i++) {
        add(i, payload);
        flush();
        bulk(NULL, 0);
    }
    return n;
}

static long draining(long n) {
    char due[16];                                 /* replies on their way, oldest first: entries, XACK's, XDEL's */
    int waiting = 0;
    long done = 0, acked = 0, deleted = 0;
    for (; waiting < 2; due[waiting++] = 'e') ask();
    flush();
    while (waiting) {
        char next = due[0];
        memmove(due, due + 1, (size_t)--waiting);
        if (next == 'a') acked += number(':');
        else if (next == 'd') deleted += number(':');
        else if (entries()) {
            done += found;
            settle();
            due[waiting++] = 'a';
            due[waiting++] = 'd';
            if (done < n) {
                ask();
                due[waiting++] = 'e';
            }
            flush();
        }
    }
    if (acked != done || deleted != done) die("not all that was read could be settled");
    return done;
}

int main(int argc, char **argv) {
    if (argc < 4) die("usage: ceiling PORT add|one|drain N [PAYLOAD_BYTES]");
    long n = atol(argv[3]), size = argc > 4 ? atol(argv[4]) : 90;
    char *payload = malloc((size_t)size + 1);
    in = malloc(room);
    out = malloc(space);
    if (!in || !out || !payload) die("no memory");
    memset(payload, 'x', (size_t)size);
    payload[0] = payload[size - 1] = '"';
    payload[size] = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    int yes = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    group();
    long long start = now();
    long done = strcmp(argv[2], "drain") ? strcmp(argv[2], "one") ? adding(n, payload) : awaited(n, payload) : draining(n);
    printf("{\"jobs\": %ld, \"rate\": %.0f}\n", done, (double)done / ((double)(now() - start) / 1e9));
    return done >= n ? 0 : 1;
}
