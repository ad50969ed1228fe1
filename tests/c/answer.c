/*
 * Answers lines of standard input through runtime/c/include/preface.h, and meets every error on the way.
 *
 *   answer IMAGE TRUST OTHER_TRUST ALTERED BUNDLE... < LINES
 *
 * OTHER_TRUST does not trust the bundles' key, ALTERED is a changed copy of the first bundle. A line holds two texts
 * parted by a tab; a task that reads one text is asked about the first. Prints one line an answer: task, kind, whether
 * it is out of scope, and each label with the bits of its score. With COUNT_ALLOCATIONS it has an allocator that
 * counts, and sees to it that answers from token ids allocate nothing.
 */
#include "check.h"

#include <pthread.h>

#define TASKS 8
#define LABELS 16
#define NAME 64

/* A task's names, fetched once. */
typedef struct names {
  char task[NAME];
  char labels[LABELS][NAME];
} names;

static void fetch(preface_session *session, size_t task, preface_task_facts *facts, names *names) {
  size_t label, length;
  facts->size = sizeof *facts;
  GOOD(preface_session_task(session, task, facts));
  GOOD(preface_session_task_name(session, task, names->task, NAME, &length));
  ASSERT(length == strlen(names->task) && facts->labels <= LABELS);
  for (label = 0; label < facts->labels; label++)
    GOOD(preface_session_label(session, task, label, names->labels[label], NAME, NULL));
}

static void print(const names *names, const said *said) {
  size_t index;
  printf("%s\t%d\t%d", names->task, (int)said->answer.kind, (int)said->answer.out_of_scope);
  for (index = 0; index < said->answer.count; index++) {
    uint32_t bits;
    memcpy(&bits, &said->scores[index], sizeof bits);
    printf("\t%s:%08" PRIx32, said->labels[index] < 0 ? "-" : names->labels[said->labels[index]], bits);
  }
  putchar('\n');
}

static int alike(const said *one, const said *other) {
  size_t count = one->answer.count;
  return count == other->answer.count && one->answer.kind == other->answer.kind &&
         one->answer.out_of_scope == other->answer.out_of_scope &&
         !memcmp(one->labels, other->labels, count * sizeof *one->labels) &&
         !memcmp(one->scores, other->scores, count * sizeof *one->scores);
}

/* Prints what the task says about a line, the same from its text and from its token ids. */
static void answer(preface_session *session, size_t task, char *line) {
  preface_task_facts facts;
  names names;
  said spoken, numbered;
  text text;
  char *second = strchr(line, '\t');
  ASSERT(second);
  *second = 0;
  fetch(session, task, &facts, &names);
  GOOD(preface_session_activate(session, task));
  const char *other = facts.inputs == 2 ? second + 1 : NULL;
  GOOD(preface_session_answer(session, line, other, ready(&spoken)));
  ASSERT(spoken.answer.kind == facts.answer);
  GOOD(preface_session_encode(session, line, other, room(&text)));
  GOOD(preface_session_answer_tokens(session, &text.tokens, ready(&numbered)));
  ASSERT(alike(&spoken, &numbered));
#ifdef COUNT_ALLOCATIONS
  size_t before = counts();
  ASSERT(before > 0);
  GOOD(preface_session_answer_tokens(session, &text.tokens, ready(&numbered)));
  GOOD(preface_session_activate(session, task));
  ASSERT(counts() == before);
  ASSERT(alike(&spoken, &numbered));
#endif
  *second = '\t';
  print(&names, &spoken);
}

/* Asks all tasks about a line at once: each answers as it does alone, up to the order of sums. */
static void answer_together(preface_session *session, size_t count, char *line) {
  size_t tasks[TASKS], task, index;
  static said together[TASKS], alone;
  static text texts[TASKS];
  const preface_tokens *tokens[TASKS];
  preface_answer *answers[TASKS];
  preface_task_facts facts = {sizeof facts, 0, 0, 0};
  char *second = strchr(line, '\t');
  ASSERT(second && count > 1 && count <= TASKS);
  *second = 0;
  for (task = 0; task < count; task++) {
    tasks[task] = task;
    GOOD(preface_session_task(session, task, &facts));
    GOOD(preface_session_activate(session, task));
    GOOD(preface_session_encode(session, line, facts.inputs == 2 ? second + 1 : NULL, room(&texts[task])));
    tokens[task] = &texts[task].tokens;
    answers[task] = ready(&together[task]);
  }
  *second = '\t';
  GOOD(preface_session_answer_all(session, count, tasks, tokens, answers));
  for (task = 0; task < count; task++) {
    GOOD(preface_session_activate(session, task));
    GOOD(preface_session_answer_tokens(session, tokens[task], ready(&alone)));
    for (index = 0; index < alone.answer.count; index++) {
      float difference = alone.scores[index] - together[task].scores[index];
      ASSERT(difference < 1e-4f && difference > -1e-4f);
      alone.scores[index] = together[task].scores[index];
    }
    ASSERT(alike(&alone, &together[task]));
  }
  ready(&together[0])->capacity = 0;
  ready(&together[1]);
  EXPECT(PREFACE_BUFFER_TOO_SMALL, preface_session_answer_all(session, 2, tasks, tokens, answers));
  ASSERT(together[0].answer.count == 1 && together[1].answer.count == 1 && together[1].scores[0] > 0);
  tasks[1] = count;
  EXPECT(PREFACE_NO_TASK, preface_session_answer_all(session, 2, tasks, tokens, answers));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer_all(session, 1, NULL, tokens, answers));
  tokens[0] = NULL;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer_all(session, 1, tasks, tokens, answers));
  answers[0] = NULL;
  tokens[0] = tokens[1];
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer_all(session, 1, tasks, tokens, answers));
  GOOD(preface_session_answer_all(session, 0, NULL, NULL, NULL));
}

/* Files that are no images, and pointers to nothing. */
static void meet_image_errors(const char *path, const char *bundle) {
  preface_image *image = NULL;
  preface_image_facts facts = {sizeof facts, 0, 0, 0, 0, 0, 0};
  EXPECT(PREFACE_UNREADABLE, preface_image_open("no such file", &image));
  expect_text(__LINE__, "cannot read no such file: ");
  EXPECT(PREFACE_MALFORMED, preface_image_open(bundle, &image));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_image_open(NULL, &image));
  expect_text(__LINE__, "path is a null pointer");
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_image_open(path, NULL));
  ASSERT(!image);
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_image_describe(NULL, &facts));
  preface_image_close(NULL);
  GOOD(preface_image_open(path, &image));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_image_describe(image, NULL));
  facts.size--;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_image_describe(image, &facts));
  expect_text(__LINE__, "set it to sizeof(preface_image_facts)");
  facts.size++;
  GOOD(preface_image_describe(image, &facts));
  ASSERT(facts.hidden > 0 && facts.layers > 0 && facts.vocabulary > 0 && facts.max_positions > 0);
  ASSERT(facts.kind == PREFACE_ENCODER && facts.engine == PREFACE_ENGINE_EXECUTOR);
  preface_image_close(image);
}

/* Options that no session has; those of one with room for four tokens. */
static void meet_option_errors(const preface_image *image, const char *bundle, const char *trust) {
  preface_session *session = NULL;
  preface_options options = {sizeof options, 4, 7, PREFACE_TOKENIZER_WITH_FIRST_TEXT, 65, 2, 65};
  struct {
    preface_options options;
    size_t more;
  } newer;
  said said;
  size_t task;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_open(image, &options, &session));
  expect_text(__LINE__, "preface_options.overlength is 7");
  options.overlength = PREFACE_REFUSE;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_open(image, &options, &session));
  expect_text(__LINE__, "preface_options.threads is 65");
  options.threads = 2;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_open(image, &options, &session));
  expect_text(__LINE__, "preface_options.pinned is 2");
  options.pinned = 1;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_open(image, &options, &session));
  expect_text(__LINE__, "preface_options.texts is 65");
  options.texts = 1;
  newer.options = options;
  newer.options.size = sizeof newer;
  newer.more = 1;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_open(image, &newer.options, &session));
  options.tokenizer = -1;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_open(image, &options, &session));
  options.tokenizer = PREFACE_TOKENIZER_WITH_FIRST_TEXT;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_open(NULL, &options, &session));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_open(image, &options, NULL));
  ASSERT(!session);
  newer.more = 0;
  GOOD(preface_session_open(image, &newer.options, &session));
  GOOD(preface_session_load(session, bundle, trust, &task));
  GOOD(preface_session_activate(session, task));
  EXPECT(PREFACE_TOO_LONG, preface_session_answer(session, "more than four tokens of text", NULL, ready(&said)));
  preface_session_close(session);
  options.overlength = PREFACE_TRUNCATE;
  GOOD(preface_session_open(image, &options, &session));
  GOOD(preface_session_load(session, bundle, trust, &task));
  GOOD(preface_session_activate(session, task));
  GOOD(preface_session_answer(session, "more than four tokens of text", NULL, ready(&said)));
  preface_session_close(session);
}

/* Bundles and trust stores that do not go together. */
static void meet_load_errors(preface_session *session, char **files) {
  const char *trust = files[0], *other_trust = files[1], *altered = files[2], *bundle = files[3];
  size_t task = 7, count;
  EXPECT(PREFACE_UNREADABLE, preface_session_load(session, "no such file", trust, &task));
  EXPECT(PREFACE_TRUST_STORE, preface_session_load(session, bundle, "no such file", &task));
  EXPECT(PREFACE_TRUST_STORE, preface_session_load(session, bundle, bundle, &task));
  EXPECT(PREFACE_MALFORMED, preface_session_load(session, trust, trust, &task));
  EXPECT(PREFACE_UNTRUSTED, preface_session_load(session, bundle, other_trust, &task));
  expect_text(__LINE__, " is refused: not trusted: ");
  EXPECT(PREFACE_BAD_SIGNATURE, preface_session_load(session, altered, trust, &task));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_load(session, NULL, trust, &task));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_load(session, bundle, NULL, &task));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_load(session, bundle, trust, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_load(NULL, bundle, trust, &task));
  GOOD(preface_session_task_count(session, &count));
  ASSERT(task == 7 && count == 0);
}

/* A session without tasks, and numbers of none. */
static void meet_task_errors(preface_session *session) {
  char name[NAME];
  preface_task_facts facts = {sizeof facts, 0, 0, 0};
  said said;
  EXPECT(PREFACE_NO_TASK, preface_session_answer(session, "text", NULL, ready(&said)));
  EXPECT(PREFACE_NO_TASK, preface_session_activate(session, 0));
  EXPECT(PREFACE_NO_TASK, preface_session_task(session, 0, &facts));
  EXPECT(PREFACE_NO_TASK, preface_session_task_name(session, 0, name, NAME, NULL));
  EXPECT(PREFACE_NO_TASK, preface_session_label(session, 0, 0, name, NAME, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_task_count(session, NULL));
}

/* Names and answers without room. */
static void meet_room_errors(preface_session *session) {
  char name[NAME] = "untouched";
  size_t length = 0;
  said said;
  text text;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_label(session, 0, LABELS, name, NAME, NULL));
  EXPECT(PREFACE_BUFFER_TOO_SMALL, preface_session_task_name(session, 0, name, 0, &length));
  ASSERT(length > 0 && length < NAME);
  EXPECT(PREFACE_BUFFER_TOO_SMALL, preface_session_task_name(session, 0, name, length, &length));
  ASSERT(!strcmp(name, "untouched"));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_task_name(session, 0, NULL, NAME, &length));
  GOOD(preface_session_task_name(session, 0, name, length + 1, NULL));
  ASSERT(strlen(name) == length);
  GOOD(preface_session_activate(session, 0));
  ready(&said)->capacity = 0;
  EXPECT(PREFACE_BUFFER_TOO_SMALL, preface_session_answer(session, "text", NULL, &said.answer));
  ASSERT(said.answer.count == 1);
  ready(&said)->labels = NULL;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer(session, "text", NULL, &said.answer));
  ready(&said)->scores = NULL;
  GOOD(preface_session_answer(session, "text", NULL, &said.answer));
  room(&text)->capacity = 1;
  EXPECT(PREFACE_BUFFER_TOO_SMALL, preface_session_encode(session, "some text", NULL, &text.tokens));
  ASSERT(text.tokens.count > 1);
  room(&text)->types = NULL;
  GOOD(preface_session_encode(session, "some text", NULL, &text.tokens));
}

/* Texts and tokens that cannot be answered. */
static void meet_text_errors(preface_session *session) {
  said said;
  text text;
  preface_tokens *tokens = room(&text);
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer(session, NULL, NULL, ready(&said)));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer(session, "text", NULL, NULL));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer(session, "\xff", NULL, ready(&said)));
  expect_text(__LINE__, "text is not UTF-8");
  EXPECT(PREFACE_INPUTS, preface_session_answer(session, "text", "and text", ready(&said)));
  EXPECT(PREFACE_EMPTY, preface_session_answer_tokens(session, tokens, ready(&said)));
  tokens->count = 1;
  text.ids[0] = UINT32_MAX;
  EXPECT(PREFACE_TOKEN, preface_session_answer_tokens(session, tokens, ready(&said)));
  expect_text(__LINE__, "outside the vocabulary");
  text.ids[0] = 5;
  tokens->types = NULL;
  GOOD(preface_session_answer_tokens(session, tokens, ready(&said)));
  tokens->count = SIZE_MAX;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer_tokens(session, tokens, ready(&said)));
  tokens->ids = NULL;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer_tokens(session, tokens, ready(&said)));
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_answer_tokens(session, NULL, ready(&said)));
}

/* A task that reads pairs is given one text, or no room for token types. */
static void meet_pair_errors(preface_session *session, size_t task) {
  said said;
  text text;
  GOOD(preface_session_activate(session, task));
  EXPECT(PREFACE_INPUTS, preface_session_answer(session, "text", NULL, ready(&said)));
  room(&text)->types = NULL;
  EXPECT(PREFACE_INVALID_ARGUMENT, preface_session_encode(session, "text", "text", &text.tokens));
}

/* Answers until the other thread was refused once. */
typedef struct race {
  preface_session *session;
  text text;
  int refused;
} race;

static void *answers(void *argument) {
  race *race = argument;
  said said;
  while (!__atomic_load_n(&race->refused, __ATOMIC_ACQUIRE)) {
    int32_t status = preface_session_answer_tokens(race->session, &race->text.tokens, ready(&said));
    if (status != PREFACE_OK) EXPECT(PREFACE_BUSY, status);
  }
  return NULL;
}

static void meet_another_thread(preface_session *session) {
  race race = {session, {{0, NULL, NULL, 0, 0, NULL, 0, 0}, {0}, {0}, {0}}, 0};
  size_t count;
  int32_t status = PREFACE_OK;
  pthread_t thread;
  GOOD(preface_session_activate(session, 0));
  GOOD(preface_session_encode(session, "a text of some tokens, of a few more, and of others", NULL, room(&race.text)));
  ASSERT(!pthread_create(&thread, NULL, answers, &race));
  while (status == PREFACE_OK) status = preface_session_task_count(session, &count);
  __atomic_store_n(&race.refused, 1, __ATOMIC_RELEASE);
  EXPECT(PREFACE_BUSY, status);
  ASSERT(!pthread_join(thread, NULL));
}

int main(int arguments, char **argument) {
  preface_image *image;
  preface_session *session;
  preface_task_facts facts = {sizeof facts, 0, 0, 0};
  char line[1024];
  size_t tasks = 0, task, count, loaded;
  ASSERT(arguments > 5);
  ASSERT(!strcmp(preface_version(), PREFACE_VERSION));
  ASSERT(!strcmp(preface_status_name(PREFACE_NO_TASK), "PREFACE_NO_TASK"));
  ASSERT(!strcmp(preface_status_name(9), "PREFACE_?"));
  ASSERT(preface_last_error(NULL, 0) == 0);
  meet_image_errors(argument[1], argument[5]);
  GOOD(preface_image_open(argument[1], &image));
  meet_option_errors(image, argument[5], argument[2]);
  GOOD(preface_session_open(image, NULL, &session));
  preface_image_close(image);
  meet_load_errors(session, argument + 2);
  meet_task_errors(session);
  for (tasks = 0; tasks < (size_t)arguments - 5; tasks++) {
    GOOD(preface_session_load(session, argument[5 + tasks], argument[2], &task));
    ASSERT(task == tasks);
  }
  GOOD(preface_session_load(session, argument[5], argument[2], &loaded));
  GOOD(preface_session_task_count(session, &count));
  ASSERT(loaded == 0 && count == tasks);
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    for (task = 0; task < tasks; task++) answer(session, task, line);
    answer_together(session, tasks, line);
  }
  meet_room_errors(session);
  meet_text_errors(session);
  GOOD(preface_session_task(session, tasks - 1, &facts));
  if (facts.inputs == 2) meet_pair_errors(session, tasks - 1);
  meet_another_thread(session);
  preface_session_close(session);
  preface_session_close(NULL);
  return 0;
}
