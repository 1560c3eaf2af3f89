package importrules

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// source is one Go file as far as these rules see it.
type source struct {
	pkg     string // the folder, from the module's root, with slashes
	name    string
	imports []string
}

func (s source) isTest() bool { return strings.HasSuffix(s.name, "_test.go") }

// TestImportRules holds the whole module to the tables of rules_test.go.
func TestImportRules(t *testing.T) {
	files := readModule(t, filepath.Join("..", ".."))
	for _, complaint := range check(files) {
		t.Error(complaint)
	}
	for _, row := range staleRows(files) {
		t.Error(row)
	}
}

// check returns a line for each broken rule.
func check(files []source) []string {
	var bad []string
	adapters := map[string][]string{} // package and library → files that import it
	for _, f := range files {
		for _, imp := range f.imports {
			where := path.Join(f.pkg, f.name)
			var complaint string
			switch {
			case imp == module || strings.HasPrefix(imp, module+"/"):
				complaint = checkOurs(f, strings.TrimPrefix(strings.TrimPrefix(imp, module), "/"))
			case strings.Contains(strings.Split(imp, "/")[0], "."):
				lib, r := doorFor(f, imp)
				if r == 0 {
					complaint = "there is no door for it here"
				}
				if r == oneFile && !f.isTest() {
					adapters[f.pkg+" "+lib] = append(adapters[f.pkg+" "+lib], f.name)
				}
			default:
				complaint = checkStandard(f, imp)
			}
			if complaint != "" {
				bad = append(bad, fmt.Sprintf("%s imports %s: %s", where, imp, complaint))
			}
		}
		if _, ok := ours[f.pkg]; !ok {
			bad = append(bad, fmt.Sprintf("%s: package %s has no row in the table", path.Join(f.pkg, f.name), f.pkg))
		}
	}
	for key, names := range adapters {
		if names = slices.Compact(names); len(names) > 1 {
			bad = append(bad, fmt.Sprintf("%s: imported by %s; one file is the adapter", key, strings.Join(names, ", ")))
		}
	}
	slices.Sort(bad)
	return slices.Compact(bad)
}

func checkOurs(f source, imp string) string {
	allowed := ours[f.pkg]
	if f.isTest() {
		// An external test imports the package that it tests.
		if imp == f.pkg {
			return ""
		}
		allowed = slices.Concat(allowed, oursInTests[f.pkg])
	}
	if slices.Contains(allowed, imp) {
		return ""
	}
	return fmt.Sprintf("%s may import %v", f.pkg, allowed)
}

func doorFor(f source, imp string) (lib string, r reach) {
	for l := range doors {
		if (imp == l || strings.HasPrefix(imp, l+"/")) && len(l) > len(lib) {
			lib = l
		}
	}
	r = max(doors[lib][f.pkg], doors[lib][everywhere])
	if r == inTests && !f.isTest() {
		r = 0
	}
	return lib, r
}

func checkStandard(f source, imp string) string {
	if b, ok := banned[imp]; ok && !slices.Contains(b.except, f.pkg) {
		return b.why
	}
	if !f.isTest() && slices.Contains(impure[f.pkg], imp) {
		return "the state machine has no randomness and no I/O of its own"
	}
	return ""
}

// staleRows names rows of packages that are not there: the table must stay true.
func staleRows(files []source) []string {
	var bad []string
	for pkg := range ours {
		if !slices.ContainsFunc(files, func(f source) bool { return f.pkg == pkg }) {
			bad = append(bad, "there is a row for "+pkg+", and no such package")
		}
	}
	slices.Sort(bad)
	return bad
}

func readModule(t *testing.T, root string) []source {
	t.Helper()
	var files []source
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipFolder(root, p, d.Name())
		}
		if !strings.HasSuffix(d.Name(), ".go") {
			return nil
		}
		// Files of every build tag count, so the parser is asked, not the go tool.
		parsed, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		s := source{pkg: filepath.ToSlash(filepath.Dir(rel)), name: d.Name()}
		for _, spec := range parsed.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: import %s: %w", rel, spec.Path.Value, err)
			}
			s.imports = append(s.imports, imp)
		}
		files = append(files, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("no Go file was found under %s", root)
	}
	return files
}

// skipFolder passes over what the go tool passes over: hidden folders, test data,
// other modules.
func skipFolder(root, p, name string) error {
	if p == root {
		return nil
	}
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// TestRulesCatch shows the checker files that break one rule each.
func TestRulesCatch(t *testing.T) {
	const raft = "github.com/hashicorp/raft"
	one := func(pkg, name string, imports ...string) []source {
		return []source{{pkg: pkg, name: name, imports: imports}}
	}
	for _, c := range []struct {
		name  string
		files []source
		want  string // a part of the only complaint; empty: none
	}{
		{"kv with the standard library", one("kv", "kv.go", "errors", "time"), ""},
		{"kv with a library", one("kv", "kv.go", "github.com/gorilla/mux"), "no door"},
		{"kv upwards", one("kv", "kv.go", module+"/engine"), "may import"},
		{"sideways", one("httpapi", "a.go", module+"/client"), "may import"},
		{"downwards", one("consensus", "a.go", module+"/raftstore"), ""},
		{"badgerkit by fsm", one("fsm", "a.go", module+"/internal/badgerkit"), "may import"},
		{"badgerkit by engine", one("engine", "a.go", module+"/internal/badgerkit"), ""},
		{"badger by fsm", one("fsm", "a.go", "github.com/dgraph-io/badger/v2/pb"), "no door"},
		{"badger's own packages by engine", one("engine", "a.go", "github.com/dgraph-io/badger/v2/pb"), ""},
		{"another library of that name", one("consensus", "a.go", raft+"-boltdb"), "no door"},
		{"raft in an httpapi test", one("httpapi", "a_test.go", raft), "no door"},
		{"raft in one file of fsm", one("fsm", "raft.go", raft), ""},
		{"raft in two files of fsm", append(one("fsm", "raft.go", raft), one("fsm", "b.go", raft)...), "one file is the adapter"},
		{"raft in a file and a test of fsm", append(one("fsm", "raft.go", raft), one("fsm", "b_test.go", raft)...), ""},
		{"a test library in code", one("fsm", "a.go", "pgregory.net/rapid"), "no door"},
		{"a test library in a test", one("fsm", "a_test.go", "pgregory.net/rapid"), ""},
		{"an external test of its package", one("fsm", "a_test.go", module+"/fsm"), ""},
		{"an unknown library", one("node", "a.go", "example.com/new"), "no door"},
		{"an unknown package", one("utils", "a.go"), "has no row"},
		{"the global logger", one("node", "a.go", "log"), "slog"},
		{"randomness in the state machine", one("fsm", "a.go", "crypto/rand"), "randomness"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := check(c.files)
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("complains: %v", got)
			case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
				t.Errorf("got %q, want one complaint with %q", got, c.want)
			}
		})
	}
}
