/*
 * Counts the instructions that a program executes under qemu-user.
 *
 *     qemu-aarch64 -plugin libinsncount.so -d plugin -D FILE PROGRAM
 *
 * FILE receives `total N` at exit. An A64 program can mark a region with `hint #0x60` .. `hint #0x63`, which
 * real CPUs execute as no-ops: each time one is reached, FILE receives `mark I N`, the count so far.
 *
 * Counts are of one thread's program order: run with one thread, as the counter is not atomic.
 *
 * Debian packages no qemu-plugin.h, so the entry points of plugin API version 1 are declared here.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct block;
struct instruction;
enum { INLINE_ADD_U64 = 0, NO_REGISTERS = 0 };

void qemu_plugin_outs(const char *text);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*callback)(plugin_id, struct block *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *block, int operation, void *counter, uint64_t value);
void qemu_plugin_register_vcpu_insn_exec_cb(struct instruction *instruction, void (*callback)(unsigned, void *),
                                            int registers, void *data);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*callback)(plugin_id, void *), void *data);
size_t qemu_plugin_tb_n_insns(const struct block *block);
struct instruction *qemu_plugin_tb_get_insn(const struct block *block, size_t index);
const void *qemu_plugin_insn_data(const struct instruction *instruction);
size_t qemu_plugin_insn_size(const struct instruction *instruction);

EXPORT int qemu_plugin_version = 1;

static uint64_t executed;

static void print_mark(unsigned cpu, void *mark)
{
    char line[64];
    (void)cpu;
    snprintf(line, sizeof line, "mark %lu %lu\n", (unsigned long)(uintptr_t)mark, (unsigned long)executed);
    qemu_plugin_outs(line);
}

static void print_total(plugin_id id, void *data)
{
    char line[64];
    (void)id;
    (void)data;
    snprintf(line, sizeof line, "total %lu\n", (unsigned long)executed);
    qemu_plugin_outs(line);
}

/* The mark of `hint #0x60` .. `hint #0x63`, or -1. */
static int mark_of(const struct instruction *instruction)
{
    uint32_t word;
    if (qemu_plugin_insn_size(instruction) != sizeof word)
        return -1;
    memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
    uint32_t number = (word >> 5) & 0x7f;
    int is_hint = (word & 0xfffff01f) == 0xd503201f;
    return is_hint && number >= 0x60 && number <= 0x63 ? (int)(number - 0x60) : -1;
}

static void on_translation(plugin_id id, struct block *block)
{
    size_t count = qemu_plugin_tb_n_insns(block);
    (void)id;
    for (size_t i = 0; i < count; i++) {
        struct instruction *instruction = qemu_plugin_tb_get_insn(block, i);
        int mark = mark_of(instruction);
        if (mark >= 0)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, print_mark, NO_REGISTERS, (void *)(uintptr_t)mark);
    }
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &executed, count);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    (void)argc;
    (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, print_total, NULL);
    return 0;
}
