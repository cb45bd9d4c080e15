/* Moves the wall clock of a process by as many nanoseconds as a file says, at once when the file changes, as setting
 * the machine's clock would. The monotonic clock is left alone. To be preloaded (LD_PRELOAD).
 *
 * A wait until an instant of the wall clock is moved back as it begins, so that it takes as long as was meant. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const volatile long long *offset_ns;

__attribute__((constructor)) static void map_offset(void) {
  const char *path = getenv("MOVED_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof *offset_ns, PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) offset_ns = mapped;
  close(file);
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static struct timespec plus(struct timespec time, long long nanoseconds) {
  long long sum = time.tv_sec * SECOND + time.tv_nsec + nanoseconds;
  long long rest = (sum % SECOND + SECOND) % SECOND;
  return (struct timespec){.tv_sec = (sum - rest) / SECOND, .tv_nsec = rest};
}

static long long offset(void) { return offset_ns ? *offset_ns : 0; }

/* The monotonic clock counts from the boot: an instant decades from there is the wall clock's. */
static struct timespec as_the_kernel_counts(const struct timespec *until) {
  return until->tv_sec > SECOND ? plus(*until, -offset()) : *until;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = next("clock_gettime");
  int failed = real(clock, time);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *time = plus(*time, offset());
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict unused) {
  (void)unused;
  struct timespec moved;
  int failed = clock_gettime(CLOCK_REALTIME, &moved);
  if (!failed) *now = (struct timeval){.tv_sec = moved.tv_sec, .tv_usec = moved.tv_nsec / 1000};
  return failed;
}

time_t time(time_t *seconds) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (seconds) *seconds = now.tv_sec;
  return now.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
  static int (*real)(sem_t *, const struct timespec *);
  if (!real) real = next("sem_timedwait");
  struct timespec moved = as_the_kernel_counts(until);
  return real(semaphore, &moved);
}

long syscall(long number, ...) {
  static long (*real)(long, long, long, long, long, long, long);
  if (!real) real = next("syscall");
  va_list arguments;
  long a[6];
  va_start(arguments, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(arguments, long);
  va_end(arguments);
  struct timespec moved;
  if (number == SYS_futex && a[3] && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && a[1] & FUTEX_CLOCK_REALTIME) {
    moved = as_the_kernel_counts((const struct timespec *)a[3]);
    a[3] = (long)&moved;
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
