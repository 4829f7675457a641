"""The fixed word lists: what is trained on, and what never is.

`HELD_OUT` words are never counted, spelt or reversed in training, so accuracy on them is accuracy
on unseen words. Knows nothing of prompts or tokens.
"""

_SHOWCASE = """
strawberry mississippi banana raspberry committee bookkeeper kubernetes parallelism blueberry
cranberry tensor possession assessment successful tennessee cappuccino broccoli accommodation
parallel onomatopoeia
"""

_COMMON = """
apple orange lemon cherry pepper tomato potato carrot onion garlic cabbage lettuce spinach pumpkin
mushroom butter cheese yogurt coffee sugar chocolate biscuit pancake sandwich spaghetti breakfast
dinner kitchen bottle glass spoon window mirror ceiling carpet curtain pillow blanket mattress
drawer cupboard bathroom balcony garage garden flower sunflower daffodil tulip forest mountain
valley river ocean island desert glacier volcano thunder lightning rainbow sunset morning evening
midnight yesterday tomorrow tuesday wednesday february september october november december january
summer winter autumn spring holiday birthday wedding anniversary elephant giraffe kangaroo rabbit
squirrel hamster penguin dolphin octopus butterfly grasshopper mosquito crocodile alligator
hippopotamus rhinoceros chimpanzee gorilla leopard buffalo antelope reindeer teacher student
doctor engineer carpenter plumber electrician scientist professor secretary president minister
governor colonel lieutenant sergeant soldier sailor captain passenger neighbour guitar piano
violin trumpet saxophone orchestra concert theatre museum gallery library bookshop university
college classroom homework alphabet grammar sentence paragraph dictionary encyclopedia mathematics
geometry algebra arithmetic chemistry biology physics philosophy psychology geography computer
keyboard monitor printer network internet database algorithm programming software hardware bicycle
motorcycle helicopter airplane submarine ambulance tractor trolley scooter locomotive football
basketball tennis volleyball hockey cricket swimming athletics gymnastics beautiful wonderful
horrible terrible excellent brilliant enormous gigantic miniature ordinary different difficult
necessary possible impossible important interesting expensive dangerous delicious quickly slowly
suddenly carefully immediately definitely probably certainly occasionally unfortunately happiness
sadness loneliness friendship relationship government parliament democracy republic hospital
pharmacy medicine surgery vaccine temperature pressure electricity magnet battery engine planet
galaxy universe satellite telescope astronaut gravity asteroid bottom little yellow purple silver
bronze copper diamond emerald sapphire address message envelope parcel package letterbox newspaper
magazine journalist million billion hundred thousand dozen quarter triangle rectangle pentagon
hexagon mommy daddy uncle cousin nephew grandmother grandfather daughter sister brother pizza
puzzle buzzing jazz muffin coffin traffic giggle wiggle bubble rubber ladder hammer summit rhythm
syzygy queue eerie aardvark zigzag quizzes unnecessary misspelling embarrassment entrepreneur
questionnaire millennium maintenance pronunciation recommend surveillance tomorrowland
authentication configuration infrastructure internationalization responsibility
"""

_TRAINED = """
able about above accept account across action actor adventure advice afraid afternoon again
against agree airport album alive almost alone along already although always amazing among amount
ancient angel anger angle animal announce another answer anybody anything apart appeal appear
approach area argue arm army around arrange arrive arrow article artist asleep assist attack
attempt attend attic august aunt author average award away baby back bacon badly bag bake balance
ball bamboo band bank barrel basket battle beach bean bear beard beat because become bed beef beer
before begin behave behind believe bell belong below belt bench bend beneath benefit berry beside
better between beyond bird bitter black blame bless blind block blood blossom blow blue board boat
body boil bone book boot border boring borrow bother bowl box branch brave bread break breathe
breeze brick bridge bright bring broad broken broom brown brush bucket build bullet bundle burn
bus bush business busy button buyer cabin cable cactus cage cake calendar calm camel camera camp
canal cancel candle candy cannon canvas cap car card career careless carriage carry cartoon castle
cat catch cattle cause cave cell center century chain chair chalk challenge chance change channel
chapter character charge charm cheap check cheek chest chicken child chimney chin choice choose
church circle circus citizen city claim class clay clean clear clever cliff climate climb clock
close cloth cloud clown club coach coal coast coat code coin cold collar collect color column comb
comfort common company compare compass complain complete concern condition confess connect
consider contain content contest continue control cook cool copy corn corner correct cost cotton
couch cough council country couple courage course court cover cow crab crack cradle craft crane
crash crazy cream create creature credit crew crime crisp cross crowd crown cruel crumb crush cry
cup cure curious current curve custom damage dance dark data date dawn day dead deal dear debate
decade decide deep deer defend degree delay deliver demand deny depend describe deserve design
desire desk destroy detail develop device dig dinosaur direct dirt disagree disappear discover
disease dish distance dive divide dog doll dollar donkey door double doubt down dragon drain drama
draw dream dress drink drive drop drum dry duck dull dust duty each eager eagle ear early earn
earth east easy eat echo edge editor educate effect effort egg eight either elbow elder element
eleven empty end enemy energy enjoy enough enter entire equal error escape essay even event ever
evil exact exam example except excite excuse exercise exist exit expect expert explain explore
extra eye fabric face fact factory fade fail fair faith fall false family famous fan far farm
fashion fast fat father fault favor fear feather feed feel fellow fence fever few field fifteen
fifty fight figure fill film final find fine finger finish fire firm fish fit five fix flag flame
flash flat flavor flight float flood floor flour flow fly fog fold follow food fool foot force
foreign forget forgive fork form fortune forward found four fox frame free freeze fresh friend
frog front frost fruit fuel full fun funny fur future gain game gap gas gate gather gave gem
gentle ghost giant gift girl give glad globe glory glove glue goal goat gold good goose grab grace
grade grain grand grape grass grave gray great green greet grid grief grin grip ground group grow
guard guess guest guide guilt habit hair half hall hand handle hang happen happy harbor hard harm
harvest hat hate haul hawk head heal health heap hear heart heat heavy heel height help herb hero
hide high hill hint hire history hit hobby hold hole hollow home honest honey honor hook hope horn
horse host hot hotel hour house huge human humble humor hunger hunt hurry hurt husband ice idea
ignore image imagine improve include income increase indeed index infant inform injure ink inner
insect inside insist install intend invent invite iron issue item ivory jacket jail jar jaw jelly
jewel job join joke journey joy judge juice jump jungle junior jury justice keen keep kettle key
kick kind king kiss kite knee knife knight knock knot knowledge label labor lack lady lake lamb
lamp land lane language large laser last late laugh launch law lawyer layer lazy lead leaf league
lean learn leather leave lecture left leg legend lend lesson level lid life lift light limb limit
line lion lip liquid list listen live load loan lobster local lock logic lonely long loose lord
lose loud love lovely low loyal luck lunch lung luxury machine magic mail main major mammal manage
manner map marble march margin mark market marry mask mass master match material matter maybe
meadow meal mean measure meat medal media meet melody melt member memory mend mention menu mercy
merit messy metal method middle might mild milk mind mine minor mint minute miracle miss mistake
mix mobile model modern modest moment money monkey monster month mood moon moral mother motion
motor mouse mouth move movie much mud mule muscle music mystery nail naked napkin narrow nasty
nation native nature near neat neck need needle nerve nest never new news nice nine noble nobody
noise none noodle noon normal north nose note nothing notice novel nurse nut oak obey object
obtain odd offer office often oil old olive omit once only open opera opinion oppose option oral
order organ origin other ought outer oven over owe owl own oxygen pace pack paddle page pain paint
pair palace pale palm panda panel panic paper parade pardon parent park parrot part party pass
past paste path patient pattern pause pay pea peace peach peak pear pearl pen pencil people
perfect perform perhaps period permit person phone photo phrase pick picnic picture piece pig
pilot pin pink pipe pirate pistol place plain plan plant plastic plate play please pleasure plenty
plot plow plus pocket poem poet point poison police polite pond pony pool poor popular porch port
pose post pot pound pour powder power praise pray preach prefer prepare present pretty prevent
price pride priest prince print prison private prize problem process produce profit promise proof
proper protect proud prove public pull pulse pump punch punish pupil puppet puppy pure purpose
purse push quality queen quiet quilt quit quiz quote race radio rail rain raise range rank rapid
rare rat rather raw reach react read ready real reason receive recipe record red reduce refer
refuse region regret reject relax release rely remain remember remind remove rent repair repeat
replace reply report request rescue respect rest result return reveal reward ribbon rice rich ride
rifle right ring ripe rise risk rival road roar roast rob robot rock rocket role roll roof room
root rope rose rough round route row royal rude ruin rule run rush sack sacred sad saddle safe
sail salad salt same sample sand satisfy sauce save scale scare scatter scene school science
scissors score scream screen screw sea seal search season seat second secret section seed seek
seem select sell send senior sense separate series serious serve settle seven several severe shade
shadow shake shallow shame shape share sharp sheep shelf shell shelter shine ship shirt shock shoe
shop shore short should shoulder shout show shower shrimp shut shy sick side sight sign silence
silk silly similar simple since sing sink sit situation six size skate ski skill skin skirt sky
slave sleep slice slide slight slim slip slope slow small smart smell smile smoke smooth snack
snail snake snow soap social sock soda soft soil solid solve some son song soon sore sorry sort
soul sound soup sour south space spare speak special speech speed spell spend spider spill spin
spirit spit split spoil sport spot spread square stable staff stage stair stamp stand star start
state station statue stay steady steal steam steel steep step stick stiff still sting stir stock
stomach stone stop store storm story stove straight strange stream street strength stress stretch
strict strike string strip stroke strong struggle study stuff stupid style subject succeed such
suffer suggest suit sum sun supper supply support suppose sure surface surprise surround survey
swallow swamp swan swear sweat sweep sweet swift swing sword symbol system table tail tailor take
tale talent talk tall tank tap target task taste tax tea team tear tease tell temper temple tempt
ten tend tent term test text thank theme thick thief thin thing think thirst thirteen thirty
throat throne through throw thumb ticket tide tidy tie tiger tight timber time tin tiny tire title
toast today toe together toilet tone tongue tool tooth top topic torch total touch tough tour
towel tower town toy track trade train transfer transport trap travel tray treasure treat tree
tremble trend trial tribe trick trip troop trouble truck true trunk trust truth try tube tune
tunnel turkey turn turtle twelve twenty twice twin twist two type ugly umbrella understand uniform
union unique unit unite until upper upset urban urge use usual vacation value van vanish vapor
various vast vegetable vehicle velvet verb verse very vessel victim victory video view village
villain vine violent virtue visit vital voice volume vote vowel voyage wage wagon waist wait wake
walk wall walnut wander want war warm warn wash waste watch water wave wax way weak wealth weapon
wear weather web week weigh welcome west wet whale wheat wheel where whip whisper whistle white
whole wicked wide widow wife wild will wind wine wing wipe wire wise wish witch wolf woman wood
wool work world worm worry worth wound wrap wreck wrist write wrong yard year yeast yell young
zebra zero zone zoo communication characteristic administration classification enthusiastic
extraordinary imagination independent intentional investigation manufacturer miscellaneous
neighborhood opportunity organization participate perspective photography preparation
representative revolutionary significant simultaneously sophisticated straightforward supermarket
transformation transportation understanding vulnerability acknowledgement circumstances
commissioner disappointment entertainment environmental experimental fundamental
"""

_PLACES = """
France Germany Spain Italy Peru Chile Brazil Canada Japan China India Egypt Kenya Norway Sweden
Poland Greece Turkey London Paris Berlin Rome Madrid Tokyo Cairo Lima Oslo Vienna Prague Moscow
Boston Chicago Texas Australia Africa Europe
"""

_NAMES = """
Ann Bob Carl Dora Emma Fred Gina Hugo Iris Jack Karl Lena Mary Nina Otto Paul Rosa Sam Tina Uma
Vera Will Xena Yuri Zoe Alice David Maria Peter Laura James Olga Simon Helen Oscar Ingrid Thomas
Miguel Amara Chen
"""

_TOPICS = """
the sky|the moon|the sun|a star|gravity|love|music|a black hole|the French revolution|
the stock market|photosynthesis|a transformer|a neural network|quantum physics|the internet|
football|chess|a good book|cats and dogs|my homework|a holiday in the sun|my job|the weather|
the news|politics|religion|the meaning of life|climate change|a cake|bread|rice|a pizza|soup|tea|
a car|an engine|a plane|a train|money|taxes|a loan|health|sleep|a headache|a tree|a river|
the ocean|an island|history|art|a painting|poetry|the first world war|the Roman empire|
Shakespeare|Einstein|Newton|Napoleon|Python|a web server|a database|Linux|a compiler|
a sorting algorithm|recursion|a prime number|the number pi|the square root of two|an integral|
a matrix|the theory of relativity|evolution|DNA|a cell|the heart|the brain
"""

HELD_OUT_SHOWCASE = _SHOWCASE.split()
HELD_OUT = frozenset(HELD_OUT_SHOWCASE + _COMMON.split())
TRAINED_WORDS = sorted(set(_TRAINED.split()) - HELD_OUT)
PLACES = _PLACES.split()
NAMES = _NAMES.split()
TOPICS = _TOPICS.replace("\n", "").split("|")
