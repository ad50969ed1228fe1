/*
 * Serves what a store has active through runtime/c/include/preface.h.
 *
 *   follow IMAGE STORE TRUST OTHER_TRUST < LINES
 *
 * OTHER_TRUST does not trust the bundles' key. Before each line it takes over what was installed since, and prints of each task that
 * changed its name, number and bundle; then it prints what every task of the store says about the line.
 */
#include "check.h"

#define NAME 64

/* How many tasks were told of, and the session that tells. */
typedef struct told {
  preface_session *session;
  size_t count;
} told;

static void tell(void *context, const preface_served *served) {
  told *told = context;
  size_t count;
  ASSERT(served->size == sizeof *served && !*served->notes && served->bundle);
  EXPECT(PREFACE_BUSY, preface_session_task_count(told->session, &count));
  told->count++;
  printf("%s %zu %s\n", served->name, served->task, served->bundle);
}

/* Bundles that the trust store does not admit do not serve. */
static void tell_refused(void *context, const preface_served *served) {
  size_t *refused = context;
  ASSERT(!served->bundle && strstr(served->notes, "not trusted"));
  ++*refused;
}

static void answer(preface_session *session, const char *line) {
  char name[NAME], label[NAME];
  size_t tasks, task;
  said said;
  text text;
  GOOD(preface_session_task_count(session, &tasks));
  for (task = 0; task < tasks; task++) {
    GOOD(preface_session_activate(session, task));
    GOOD(preface_session_encode(session, line, NULL, room(&text)));
    GOOD(preface_session_answer_tokens(session, &text.tokens, ready(&said)));
    GOOD(preface_session_task_name(session, task, name, NAME, NULL));
    GOOD(preface_session_label(session, task, (size_t)said.labels[0], label, NAME, NULL));
    printf("%s says %s\n", name, label);
  }
  printf("\n");
  fflush(stdout);
}

static void meet_errors(preface_session *session, char **files) {
  size_t refused = 0, tasks;
  EXPECT(PREFACE_UNREADABLE, preface_session_follow(session, "no such folder", files[3], NULL, NULL));
  expect_text(__LINE__, "there is no store in no such folder");
  GOOD(preface_session_follow(session, files[2], files[4], tell_refused, &refused));
  ASSERT(refused == 1);
  GOOD(preface_session_task_count(session, &tasks));
  ASSERT(tasks == 0);
  EXPECT(PREFACE_TRUST_STORE, preface_session_follow(session, files[2], "no such file", NULL, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_follow(session, NULL, files[3], NULL, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_follow(session, files[2], NULL, NULL, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_follow(NULL, files[2], files[3], NULL, NULL));
}

int main(int arguments, char **argument) {
  preface_image *image;
  told told = {NULL, 0};
  char line[1024];
  ASSERT(arguments == 5);
  GOOD(preface_image_open(argument[1], &image));
  GOOD(preface_session_open(image, NULL, &told.session));
  preface_image_close(image);
  meet_errors(told.session, argument);
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    GOOD(preface_session_follow(told.session, argument[2], argument[3], tell, &told));
    told.count = 0;
    GOOD(preface_session_follow(told.session, argument[2], argument[3], tell, &told));
    ASSERT(told.count == 0);
    answer(told.session, line);
  }
  preface_session_close(told.session);
  return 0;
}
