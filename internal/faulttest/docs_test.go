package faulttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// example is a command of the documentation and what it prints by it.
type example struct {
	line    int
	command string
	output  []string
}

// goesOn says that a command is not over with its last line: after a |, a \, or within
// quotes.
func goesOn(command string) bool {
	return strings.HasSuffix(command, "|") || strings.HasSuffix(command, "\\") || strings.Count(command, "'")%2 == 1
}

// examples reads the console blocks of a page.
func examples(t *testing.T, path string) (list []example) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	in, more := false, false
	// The nodes of this package have shorter names than those of sett dev.
	text := regexp.MustCompile(`\bnode([0-9])\b`).ReplaceAllString(string(b), "n$1")
	for i, line := range strings.Split(text, "\n") {
		switch {
		case line == "```console":
			in = true
		case line == "```":
			in = false
		case !in:
		case more:
			list[len(list)-1].command += "\n" + line
			more = goesOn(list[len(list)-1].command)
		case strings.HasPrefix(line, "$ "):
			list = append(list, example{line: i + 1, command: line[2:]})
			more = goesOn(line)
		case len(list) == 0:
			t.Fatalf("%s:%d: output without a command", path, i+1)
		default:
			list[len(list)-1].output = append(list[len(list)-1].output, line)
		}
	}
	return list
}

// pattern is what the documented output stands for: … is anything within a line, and a
// line of it any lines.
func pattern(output []string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`\A`)
	for _, line := range output {
		if strings.TrimSpace(line) == "…" {
			b.WriteString(`(?:.*\n)*?`)
			continue
		}
		parts := strings.Split(line, "…")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		b.WriteString(strings.Join(parts, ".*") + `\n`)
	}
	b.WriteString(`\n*\z`)
	return regexp.MustCompile(b.String())
}

// TestAPIExamples runs docs/api.md on a fresh cluster, as a reader would: every command
// in order, in one shell, and each must print what stands there.
func TestAPIExamples(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: the examples of docs/api.md need %s, which is not installed", tool)
		}
	}
	list := examples(t, filepath.Join("..", "..", "docs", "api.md"))
	if len(list) < 30 {
		t.Fatalf("only %d examples were found", len(list))
	}
	c := newCluster(t)
	const mark = "--- end of example"
	var script strings.Builder
	// Without the meter, as on a terminal whose output is a pipe; nothing else is changed.
	script.WriteString("curl() { command curl -s \"$@\"; }\n")
	for _, e := range list {
		fmt.Fprintf(&script, "%s\necho \"%s $?\"\n", e.command, mark)
	}
	text := script.String()
	for i, n := range c.nodes {
		text = strings.ReplaceAll(text, fmt.Sprintf("http://127.0.0.1:%d", 8080+i), n.url)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", text)
	cmd.Env = withoutSettings(os.Environ())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("bash: %v", err)
	}
	end := regexp.MustCompile(mark + ` ([0-9]+)\n`)
	text = strings.ReplaceAll(string(out), "\r", "")
	got, ends := end.Split(text, -1), end.FindAllStringSubmatch(text, -1)
	if len(got) != len(list)+1 {
		t.Fatalf("%d of %d examples ran:\n%s", len(got)-1, len(list), out)
	}
	for i, e := range list {
		// A watch is ended by curl's own clock, which is no failure.
		if ends[i][1] != "0" && !strings.Contains(e.command, "--max-time") {
			t.Errorf("docs/api.md:%d: %s\nended with status %s", e.line, e.command, ends[i][1])
		}
		if !pattern(e.output).MatchString(got[i]) {
			t.Errorf("docs/api.md:%d: %s\nprinted\n%s\nand should print\n%s", e.line, e.command, got[i], strings.Join(e.output, "\n"))
		}
	}
	t.Logf("%d examples ran", len(list))
}
