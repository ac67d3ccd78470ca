"""What the manual and the README show to be typed: read from the pages themselves, so what is changed there is played anew."""

import dataclasses
import re

import machine

# A `.Ql` that is a command to be typed, rather than a word.
COMMANDS = ("thv ", "systemctl ", "journalctl ", "semanage ", "skopeo ", "docker ", "printf ")


@dataclasses.dataclass(frozen=True)
class Example:
    page: str
    line: int
    kind: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}:\n{self.text}"


def of_page(name):
    """The displays of a page (`.Bd`, `.Dl`), and the commands in its sentences, in their order."""
    lines = (machine.TOP / "man" / name).read_text().splitlines()
    found, number = [], 0
    while number < len(lines):
        line, first = lines[number], number + 1
        if line.startswith(".Bd "):
            end = lines.index(".Ed", number)
            text, number = "\n".join(lines[number + 1:end]), end
        elif line.startswith(".Dl "):
            end = number
            while lines[end].startswith(".Dl "):
                end += 1
            text, number = "\n".join(line[len(".Dl "):] for line in lines[number:end]), end - 1
        elif line.startswith(".Ql ") and plain(line[len(".Ql "):]).startswith(COMMANDS):
            # A punctuation mark of the sentence stands apart.
            text = re.sub(r" [.,:;]$", "", line[len(".Ql "):])
        else:
            number += 1
            continue
        found.append(Example(f"man/{name}", first, kind(plain(text)), plain(text)))
        number += 1
    return found


def of_readme():
    """The blocks of the README; of a console what stands behind `$ `."""
    text = (machine.TOP / "README.md").read_text()
    found = []
    for block in re.finditer(r"^```(console|toml|cedar)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        language, body = block.groups()
        number = text.count("\n", 0, block.start()) + 2
        if language != "console":
            found.append(Example("README.md", number, language, body.rstrip("\n")))
            continue
        for command in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", body, re.MULTILINE):
            found.append(Example("README.md", number + body.count("\n", 0, command.start()), "shell", command[1]))
    return found


def of_installed(host):
    """The commands in the comments of the installed examples, by the server's name; a drop-in stands behind its `#`."""
    found = {}
    for file in sorted(host.path("/usr/share/doc/thv/examples").glob("*.toml")):
        lines = [line.lstrip("# ") for line in file.read_text().splitlines() if line.startswith("#")]
        found[file.stem] = [line for line in lines if line.startswith(("thv check ", "thv secret ", "systemctl ", "systemd-creds "))]
    return found


def plain(text):
    """Without the escapes of roff."""
    return text.replace("\\(dq", '"').replace("\\-", "-").replace("\\e", "\\").replace("\\&", "")


def kind(text):
    first = text.splitlines()[0]
    if first.startswith(("# /etc/thv/servers/", "[[auth.issuer]]")):
        return "toml"
    if first.startswith("@id("):
        return "cedar"
    if first.startswith("location "):
        return "nginx"
    return "unit" if first == "[Service]" else "shell"
