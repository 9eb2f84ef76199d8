package sandbox

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The test program confines itself where these say so, and then does as it is
// told: nothing of it could be undone in the process of the tests.
const (
	confineWith = "SANDBOX_TEST_CONFIG"
	doThis      = "SANDBOX_TEST_DO"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(confineWith); text != "" {
		var c Config
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			fmt.Println(err)
			os.Exit(3)
		}
		if err := Enter(c); err != nil {
			fmt.Println(err)
			os.Exit(4)
		}
		for word := range strings.FieldsSeq(os.Getenv(doThis)) {
			fmt.Println(word, act(word))
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// act does what a word says: on a thread of its own, since it is all threads that
// are to be confined.
func act(word string) (result string) {
	done := make(chan string)
	go func() {
		runtime.LockOSThread()
		verb, what, _ := strings.Cut(word, "=")
		done <- acts[verb](what)
	}()
	return <-done
}

var acts = map[string]func(what string) string{
	"read": func(path string) string {
		_, err := os.ReadFile(path)
		return outcome(err)
	},
	"write": func(path string) string { return outcome(os.WriteFile(path, []byte("x"), 0o600)) },
	"rename": func(paths string) string {
		from, to, _ := strings.Cut(paths, ",")
		return outcome(os.Rename(from, to))
	},
	"execute": func(path string) string { return outcome(exec.Command(path).Run()) },
	"wider": func(path string) string { // what it starts cannot have what it has not
		self, err := os.Executable()
		if err != nil {
			return err.Error()
		}
		text, err := json.Marshal(Config{Must: []string{path}})
		if err != nil {
			return err.Error()
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), confineWith+"="+string(text), doThis+"=getpid")
		out, _ := cmd.CombinedOutput()
		return strings.TrimSpace(string(out))
	},
	"again": func(string) string { // what the process starts is confined as well, and knows it
		self, err := os.Executable()
		if err != nil {
			return err.Error()
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), doThis+"=state ptrace")
		out, err := cmd.CombinedOutput()
		return strings.Join(strings.Fields(string(out)), " ") + outcome(err)
	},
	"ptrace":  func(string) string { return call(unix.SYS_PTRACE) },
	"keyctl":  func(string) string { return call(unix.SYS_KEYCTL) },
	"mount":   func(string) string { return call(unix.SYS_MOUNT) },
	"kexec":   func(string) string { return call(unix.SYS_KEXEC_LOAD) },
	"unshare": func(string) string { return outcome(unix.Unshare(unix.CLONE_NEWUSER)) },
	"clone":   func(string) string { return startIn(unix.CLONE_NEWUSER) },
	"clone3":  func(string) string { return call(unix.SYS_CLONE3) },
	"bpf":     func(string) string { return call(unix.SYS_BPF) },
	"getpid":  func(string) string { return call(unix.SYS_GETPID) },
	"state":   func(string) string { return fmt.Sprintf("%+v", Observe()) },
	"uid":     func(string) string { return fmt.Sprint(os.Getuid(), os.Geteuid(), os.Getgid()) },
	"threads": func(string) string { return threads() },
	"caps": func(string) string {
		have, err := capabilities()
		return fmt.Sprintf("%#x%s", have, outcome(err))
	},
}

// startIn starts a program in namespaces of its own.
func startIn(flags uintptr) string {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	return outcome(cmd.Run())
}

// outcome names an error.
func outcome(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func call(number uintptr) string {
	_, _, errno := unix.Syscall6(number, ^uintptr(0), 0, 0, 0, 0, 0)
	if errno == 0 {
		return ""
	}
	return unix.ErrnoName(errno)
}

// threads says of all threads, of which it makes some, whether a filter is on
// them.
func threads() string {
	var busy sync.WaitGroup
	release := make(chan struct{})
	for range 8 {
		started := make(chan struct{})
		busy.Go(func() {
			runtime.LockOSThread()
			close(started)
			<-release
		})
		<-started
	}
	defer busy.Wait()
	defer close(release)
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 8 {
		return fmt.Sprint(len(tasks), err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err == nil && (!bytes.Contains(text, []byte("Seccomp:\t2")) || !bytes.Contains(text, []byte("NoNewPrivs:\t1"))) {
			return task + " is free"
		}
	}
	return "all confined"
}

// confined runs the test program confined, and returns what it said of each
// word.
func confined(t *testing.T, c Config, words ...string) map[string]string {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), confineWith+"="+string(text), doThis+"="+strings.Join(words, " "))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	said := map[string]string{}
	for line := range strings.Lines(string(out)) {
		word, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		said[word] = what
	}
	return said
}

func want(t *testing.T, got map[string]string, wanted ...string) {
	t.Helper()
	for i := 0; i < len(wanted); i += 2 {
		if got[wanted[i]] != wanted[i+1] {
			t.Errorf("%s: %q, want %q", wanted[i], got[wanted[i]], wanted[i+1])
		}
	}
}

// needed are what the test program itself reads.
var needed = []string{"/proc", "/sys", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"}

func TestFilesOfOthersAreOutOfReach(t *testing.T) {
	mine, others := t.TempDir(), t.TempDir()
	for _, path := range []string{mine + "/a", others + "/secret", mine + "/written/b"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(others+"/secret", mine+"/link"); err != nil {
		t.Fatal(err)
	}
	words := []string{"read=" + mine + "/a", "write=" + mine + "/a", "read=" + others + "/secret", "read=" + mine + "/link", "write=" + mine + "/written/c",
		"rename=" + mine + "/written/c," + mine + "/written/d", "read=" + mine + "/written/d", "write=" + others + "/new", "execute=/bin/true", "read=/etc/passwd"}
	got := confined(t, Config{Require: true, Read: append(needed, mine), Write: []string{mine + "/written"}}, words...)
	want(t, got, words[0], "", words[1], "EACCES", words[2], "EACCES", words[3], "EACCES", words[4], "", words[5], "", words[6], "", words[7], "EACCES",
		words[8], "EACCES", words[9], "")
	got = confined(t, Config{Require: true, Read: append(needed, mine)}, "wider="+mine+"/a", "wider="+others+"/secret")
	want(t, got, "wider="+mine+"/a", "getpid")
	if said := got["wider="+others+"/secret"]; !strings.Contains(said, "the process that started this one was not confined to it") {
		t.Errorf("a process that needs more than the one that starts it: %q", said)
	}
	// And without it they are within reach: the refusals are Landlock's.
	got = confined(t, Config{Off: true}, words[2], words[3], words[8])
	want(t, got, words[2], "", words[3], "", words[8], "")
}

func TestSystemCallsThatNoProxyMakes(t *testing.T) {
	got := confined(t, Config{Require: true, Read: needed}, "ptrace", "keyctl", "mount", "kexec", "unshare", "clone", "clone3", "bpf", "getpid", "threads", "state", "again")
	state := fmt.Sprintf("%+v", State{Files: true, Calls: true, NoNewPrivileges: true, Root: os.Geteuid() == 0})
	want(t, got, "ptrace", "EPERM", "keyctl", "EPERM", "mount", "EPERM", "kexec", "EPERM", "unshare", "EPERM", "clone", "EPERM", "clone3", "ENOSYS", "bpf", "EPERM", "getpid", "",
		"threads", "all confined", "state", state, "again", "state "+state+" ptrace EPERM")
	if got := confined(t, Config{Require: true, Read: needed, BPF: true}, "bpf"); got["bpf"] == "EPERM" {
		t.Error("bpf is refused where it is needed")
	}
	// And without it there is nothing in the way.
	want(t, confined(t, Config{Off: true}, "keyctl", "clone", "clone3"), "keyctl", "ENOTSUP", "clone", "", "clone3", "EINVAL")
}

func TestAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("becoming another user takes root: run the tests as root")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Where the user gets at it, unlike the directory that go test makes.
	for at := filepath.Dir(self); at != "/" && at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/secret", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	bits := fmt.Sprintf("%#x", 1<<unix.CAP_NET_BIND_SERVICE)
	got := confined(t, Config{User: "nobody", Require: true, Read: append(needed, dir), Capabilities: []int{unix.CAP_NET_BIND_SERVICE}},
		"uid", "caps", "threads", "read="+dir+"/secret")
	want(t, got, "uid", "65534 65534 65534", "caps", bits, "threads", "all confined", "read="+dir+"/secret", "EACCES")
	// The user is one thing, the sandbox another.
	want(t, confined(t, Config{User: "65534:65534", Off: true}, "uid", "caps", "keyctl"), "uid", "65534 65534 65534", "caps", "0x0", "keyctl", "ENOTSUP")
}

func TestUsersThatAreNot(t *testing.T) {
	for name, wanted := range map[string]string{"nosuchuser": "useradd --system", "nobody:nosuchgroup": `no group "nosuchgroup"`} {
		if _, err := Lookup(name); err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFilter has the program run by another implementation of its machine.
func TestFilter(t *testing.T) {
	calls := []uint32{7, 101, 300, 5, 7}
	p, err := filter(calls)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]bpf.RawInstruction, len(p))
	for i, ins := range p {
		raw[i] = bpf.RawInstruction{Op: ins.Code, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the program is not understood")
	}
	// The machine reads in the network's order, and wants a length of its own
	// from what is returned.
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	flags := uint32(0)
	run := func(number, arch uint32) bool {
		data := make([]byte, 64)
		for i, v := range []uint32{number, arch, 0, 0, flags} {
			binary.BigEndian.PutUint32(data[4*i:], v)
		}
		verdict, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(verdict) == unix.SECCOMP_RET_ALLOW
	}
	for number := range uint32(600) {
		refused := number == 5 || number == 7 || number == 101 || number == 300 || number == unix.SYS_CLONE3
		if run(number, auditArch) == refused {
			t.Errorf("call %d is refused: %v", number, !refused)
		}
		if run(number, auditArch+1) {
			t.Errorf("call %d of another architecture is allowed", number)
		}
	}
	for bit := range 32 {
		flags = 1 << bit
		if run(unix.SYS_CLONE, auditArch) == (flags&newNamespaces != 0) || !run(unix.SYS_CLONE+1, auditArch) {
			t.Errorf("clone or the next call with the flag %#x", flags)
		}
	}
	if run(0x40000000, auditArch) || run(0x40000001, auditArch) {
		t.Error("x32 is allowed")
	}
	if _, err := filter(make([]uint32, 300)); err != nil {
		t.Errorf("duplicates count: %v", err)
	}
}
