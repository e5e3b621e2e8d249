/* LD_PRELOAD: the n-th call of one function fails with a chosen errno, once, in the process that asks for it.
 *
 *   fail_call("mmap", 3, ENOMEM)   from here on, the third mmap fails; n = 0 only counts
 *   num_calls()                    how often it was called since
 *
 * pthread_create and the like return their errno instead of setting it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static char chosen[32];
static int chosen_n, chosen_errno;
static atomic_int calls;

void fail_call(const char* name, int n, int error) {
  chosen[0] = '\0';
  chosen_n = n;
  chosen_errno = error;
  atomic_store(&calls, 0);
  strncpy(chosen, name, sizeof chosen - 1);
}

int num_calls(void) { return atomic_load(&calls); }

static int fails(const char* name) {
  if (strcmp(chosen, name) != 0 || atomic_fetch_add(&calls, 1) + 1 != chosen_n) return 0;
  errno = chosen_errno;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(type, name, parameters, arguments, failure) \
  type name parameters {                                 \
    if (fails(#name)) return failure;                    \
    return REAL(name) arguments;                         \
  }

WRAP(int, memfd_create, (const char* name, unsigned flags), (name, flags), -1)
WRAP(void*, mmap, (void* at, size_t n, int prot, int flags, int fd, off_t offset), (at, n, prot, flags, fd, offset),
     MAP_FAILED)
WRAP(int, madvise, (void* at, size_t n, int advice), (at, n, advice), -1)
WRAP(int, socket, (int domain, int type, int protocol), (domain, type, protocol), -1)
WRAP(int, bind, (int fd, const struct sockaddr* address, socklen_t n), (fd, address, n), -1)
WRAP(int, listen, (int fd, int backlog), (fd, backlog), -1)
WRAP(int, connect, (int fd, const struct sockaddr* address, socklen_t n), (fd, address, n), -1)
WRAP(int, accept4, (int fd, struct sockaddr* address, socklen_t* n, int flags), (fd, address, n, flags), -1)
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr* message, int flags), (fd, message, flags), -1)
WRAP(ssize_t, recvmsg, (int fd, struct msghdr* message, int flags), (fd, message, flags), -1)
WRAP(int, getsockopt, (int fd, int level, int name, void* value, socklen_t* n), (fd, level, name, value, n), -1)
WRAP(int, fallocate, (int fd, int mode, off_t offset, off_t n), (fd, mode, offset, n), -1)
WRAP(int, eventfd, (unsigned value, int flags), (value, flags), -1)
WRAP(int, poll, (struct pollfd * fds, nfds_t n, int timeout), (fds, n, timeout), -1)
WRAP(int, ppoll, (struct pollfd * fds, nfds_t n, const struct timespec* timeout, const sigset_t* mask),
     (fds, n, timeout, mask), -1)
WRAP(ssize_t, getrandom, (void* data, size_t n, unsigned flags), (data, n, flags), -1)
WRAP(int, pthread_create, (pthread_t * thread, const pthread_attr_t* attributes, void* (*body)(void*), void* argument),
     (thread, attributes, body, argument), chosen_errno)
WRAP(int, open, (const char* path, int flags, ...), (path, flags, 0600), -1)

#define WRAP_FCNTL(name)                        \
  int name(int fd, int command, ...) {          \
    va_list list;                               \
    va_start(list, command);                    \
    void* argument = va_arg(list, void*);       \
    va_end(list);                               \
    if (fails("fcntl")) return -1;              \
    return REAL(fcntl)(fd, command, argument);  \
  }

WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)

long syscall(long number, ...) {
  va_list list;
  va_start(list, number);
  long a[6];
  for (int i = 0; i < 6; ++i) a[i] = va_arg(list, long);
  va_end(list);
  if (fails("syscall")) return -1;
  return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
