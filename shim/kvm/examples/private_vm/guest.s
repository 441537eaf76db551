// The guest of the private VM: two vCPUs in long mode, without an operating system, without a stack.
//
// `guest.rs` says where everything lies. A name in braces is a constant of its own: an address, a port, a number. Registers
// that keep their meaning: r14 the gate, r15 where the gate returns to, r13 how many hypercalls this vCPU has made.

// KVM_HC_MAP_GPA_RANGE of \pages pages at \gpa: \to is {SHARED} or {PRIVATE}. The answer is in rax.
.macro convert gpa, pages, to
    mov rbx, \gpa
    mov rcx, \pages
    mov rdx, \to
    mov eax, {MAP_GPA_RANGE}
    inc r13
    lea r15, [rip + 77f]
    jmp r14
77:
.endm

// Tells the host a number, eax, under a name, which is a port.
.macro tell name
    mov dx, \name
    out dx, eax
.endm

.macro rest
    lea rax, [r14 + {REST_IN_GATE}]
    jmp rax
.endm

    .pushsection .rodata.private_guest, "a"
    .balign {PAGE}
private_guest_start:

// The gate stays shared for as long as the guest lives. A processor without NRIPS, as QEMU's, does not tell KVM how long the
// instruction was that it exits for, so KVM reads the instruction to step over it, and KVM reads shared memory alone.
    vmmcall
    jmp r15
    .balign {REST_IN_GATE}
2:  hlt
    jmp 2b
    .balign {PAGE}

// The first vCPU begins here, in the window, which the host has written: it copies this page into private memory, goes on
// there, and gives the host's copy up.
private_guest_code:
    xor r13d, r13d
    mov r14d, {WINDOW}
    mov esi, {CODE}
    mov edi, {HOME}
    mov ecx, {PAGE} / 8
    rep movsq
    lea rax, [rip + home]
    add rax, {HOME} - {CODE}
    jmp rax
home:
    convert {CODE}, 1, {PRIVATE}
    tell {AT_HOME}

// Memory above the hole is filled, so that there is something to leak when it is somebody else's.
    mov rax, {PATTERN}
    mov rdi, {ABOVE}
    mov ecx, {ABOVE_BYTES} / 8
    rep stosq

// One page, from private to shared and back.
    mov dword ptr [{STEPPED}], {FROM_GUEST}
    mov eax, [{STEPPED}]
    tell {PRIVATE_READ}
    convert {STEPPED}, 1, {SHARED}
    tell {SHARE_ANSWER}
    mov eax, [{STEPPED}]
    tell {SHARED_READ}
    mov dword ptr [{STEPPED}], {TO_HOST}
    tell {SHARED_WRITTEN}
    mov eax, [{STEPPED}]
    tell {HOST_WROTE}
    convert {STEPPED}, 1, {PRIVATE}
    tell {UNSHARE_ANSWER}
    mov eax, [{STEPPED}]
    tell {UNSHARED_READ}
    mov dword ptr [{STEPPED}], {FROM_GUEST}
    tell {UNSHARED_WRITTEN}

// Requests that no guest should make, one after the other.
    tell {HOSTILE_BEGIN}
    lea rbp, [rip + hostile]
2:  convert [rbp], [rbp + 8], [rbp + 16]
    tell {HOSTILE_ANSWER}
    add rbp, 24
    lea rax, [rip + hostile_end]
    cmp rbp, rax
    jne 2b
    tell {HOSTILE_END}

// Four pages, of which a device will not let go of the third.
    mov dword ptr [{TORN} + 2 * {PAGE}], {FROM_GUEST}
    convert {TORN}, 4, {SHARED}
    tell {TORN_ANSWER}
    mov eax, [{TORN} + 2 * {PAGE}]
    tell {LOST_READ}
    mov eax, [{TORN} + 3 * {PAGE}]
    tell {TORN_READ}
    convert {TORN} + 2 * {PAGE}, 1, {SHARED}
    tell {LOST_ANSWER}

// The other vCPU reads the last page of a block without end, while this one converts the block, until the host has seen
// enough. Each time it waits until the other has read the page in its new state.
2:  cmp dword ptr [{READING}], 1
    jne 2b
3:  convert {BLOCK}, {BLOCK_PAGES}, {SHARED}
    mov eax, [{READS}]
4:  pause
    cmp eax, [{READS}]
    je 4b
    convert {BLOCK}, {BLOCK_PAGES}, {PRIVATE}
    mov eax, [{READS}]
5:  pause
    cmp eax, [{READS}]
    je 5b
    mov dx, {ENOUGH}
    in eax, dx
    test eax, eax
    jz 3b
    mov dword ptr [{READING}], 0
    mov eax, r13d
    tell {HYPERCALLS}
    rest

// The second vCPU begins here, at home. It converts two pages of its own back and forth, alone with each state, and looks
// whether anything is left of the other one.
private_guest_second:
    xor r13d, r13d
    xor r11d, r11d
    mov r14d, {WINDOW}
    mov r12d, {ROUNDS}
2:  convert {OWN}, 2, {SHARED}
    or r11d, eax
    or r11d, [{OWN}]
    or r11d, [{OWN} + {PAGE}]
    mov dword ptr [{OWN}], {TO_HOST}
    mov dword ptr [{OWN} + {PAGE}], {TO_HOST}
    convert {OWN}, 2, {PRIVATE}
    or r11d, eax
    or r11d, [{OWN}]
    or r11d, [{OWN} + {PAGE}]
    mov dword ptr [{OWN}], {FROM_GUEST}
    mov dword ptr [{OWN} + {PAGE}], {FROM_GUEST}
    dec r12d
    jnz 2b
    mov eax, r11d
    tell {LEFT_OVER}

    mov dword ptr [{READING}], 1
3:  mov eax, [{BLOCK} + ({BLOCK_PAGES} - 1) * {PAGE}]
    inc dword ptr [{READS}]
    cmp dword ptr [{READING}], 1
    je 3b
    mov eax, r13d
    tell {HYPERCALLS}
    rest

hostile:
    .quad {STEPPED} + 8, 1, {SHARED}                    // not aligned: KVM itself refuses
    .quad {STEPPED}, 0, {SHARED}                        // no page: KVM itself refuses
    .quad {STEPPED}, 1 << 63, {SHARED}                  // more bytes than there are numbers
    .quad {STEPPED}, 1 << 52, {SHARED}                  // the bytes are a multiple of 2^64
    .quad 0, -1, {SHARED}
    .quad -{PAGE}, 1, {SHARED}                          // the last page there can be
    .quad {HOLE}, 1, {SHARED}
    .quad {HOLE} - {PAGE}, 2, {SHARED}                  // into the hole
    .quad {ABOVE} - {PAGE}, 2, {SHARED}                 // out of it
    .quad {ABOVE} + {ABOVE_BYTES}, 1, {SHARED}          // beyond the end
    .quad {ABOVE} + {ABOVE_BYTES} - {PAGE}, 2, {SHARED} // over the end
    .quad {STEPPED}, 1, 1 << 63                         // an attribute without a meaning
    .quad {HOLE}, 1, {PRIVATE}
hostile_end:

// A later guest on the same memory begins here, in the window: it looks whether a byte is left of the one before, from rsi
// up to rdi.
private_guest_scan:
    mov r14d, {WINDOW}
    xor eax, eax
    xor ecx, ecx
2:  xor edx, edx
    cmp qword ptr [rsi], 0
    setne dl
    add ecx, edx
    add rsi, 8
    cmp rsi, rdi
    jne 2b
    mov eax, ecx
    tell {NOT_ZERO}
    rest
    .balign {PAGE}
private_guest_end:
    .popsection
