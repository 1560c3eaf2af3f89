package httpapi

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// example is a command of a page and what it prints.
type example struct {
	line    int
	command string
	output  string
}

// consoleExamples are the commands of the ```console blocks of a page. A command goes
// on over lines that end with a backslash or a pipe, or that a quote leaves open.
func consoleExamples(t *testing.T, page string) []example {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var all []example
	inside, open := false, false
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case line == "```console":
			inside = true
		case line == "```":
			inside, open = false, false
		case !inside:
		case strings.HasPrefix(line, "$ "):
			all = append(all, example{line: i + 1, command: line[2:]})
			open = goesOn(line)
		case len(all) == 0:
			t.Fatalf("%s:%d: output of nothing", page, i+1)
		case open:
			e := &all[len(all)-1]
			e.command += "\n" + line
			open = goesOn(e.command)
		default:
			all[len(all)-1].output += line + "\n"
		}
	}
	return all
}

func goesOn(command string) bool {
	return strings.HasSuffix(command, `\`) || strings.HasSuffix(command, "|") || strings.Count(command, "'")%2 == 1
}

// matches reports whether got is what the page says. An ellipsis stands for anything in a
// line, and on a line of its own for any lines.
func matches(want, got string) bool {
	re := regexp.QuoteMeta(want)
	re = strings.ReplaceAll(re, "\n…\n", "\n(?s:.*\n)?")
	re = strings.ReplaceAll(re, "…", ".*")
	return regexp.MustCompile("^" + re + "$").MatchString(got)
}

// TestDocsExamples runs the examples of docs/api.md as far as the HTTP side makes their
// output, with the model of the store behind it.
func TestDocsExamples(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("there is no curl")
	}
	f := newFixture(t)
	f.store.settings = kv.ClusterSettings{HistoryRetention: time.Hour, MaxKeyBytes: 4096, MaxValueBytes: 8 << 20, MaxRequestBytes: 32 << 20}
	f.store.oldest = 0
	f.cluster.members = []kv.Member{{ID: "node1", Voter: true}, {ID: "node2", Voter: true}, {ID: "node3", Voter: true}}
	addr := f.listen(t)
	env := map[string]string{}
	for _, e := range consoleExamples(t, "../docs/api.md") {
		script := strings.ReplaceAll(e.command, "127.0.0.1:8080", addr)
		for name, v := range env {
			script = name + "='" + v + "'\n" + script
		}
		// A command that only sets a variable prints it, for the next.
		name, _, sets := strings.Cut(e.command, "=$(")
		if sets {
			script += "\nprintf %s \"$" + name + "\""
		}
		var fail error
		if strings.Contains(e.command, "members/node9") {
			fail = kv.NotApplied(kv.CodeNotFound, "there is no such member")
		}
		f.cluster.failWith(fail)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		cmd := exec.CommandContext(ctx, "sh", "-c", script)
		out, err := cmd.Output()
		cancel()
		if err != nil && !strings.Contains(e.command, "--max-time") {
			t.Errorf("docs/api.md:%d: %s: %v", e.line, e.command, err)
		}
		got := strings.ReplaceAll(string(out), "\r\n", "\n")
		if sets {
			env[name] = got
			continue
		}
		if strings.HasSuffix(e.command, "/v1/status") || strings.HasSuffix(e.command, "/v1/cluster") {
			continue // the models know little of these
		}
		if !matches(e.output, got) {
			t.Errorf("docs/api.md:%d: $ %s\n%s\nwant\n%s", e.line, e.command, got, e.output)
		}
	}
}
